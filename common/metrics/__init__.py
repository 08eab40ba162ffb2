"""Measures of one case as sums that add up over cases and sites."""
