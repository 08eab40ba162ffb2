"""The tasks a plan can ask for, one readable module each."""
