"""What to run: study files, grids at equal FLOPs, plans, and the `salt-sweep` command."""
