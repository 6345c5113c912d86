"""Measurements; each prints a ratio against the plain way, in one run."""
