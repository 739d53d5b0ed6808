"""The commands of `salt-analyze`, a module each: what its help says, its options, what it does."""
