"""A real Slurm on this machine, thrown away after the tests; `python -m tests.slurm up` for one by hand."""
