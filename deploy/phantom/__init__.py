"""Synthetic chest CT, written as scanners write it."""
