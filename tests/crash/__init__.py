"""A small study, disturbed in every way that a machine can be: `python -m tests.crash`."""
