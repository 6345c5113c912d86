"""Studies that ship with the package, and the grids of hyperparameters they span."""
