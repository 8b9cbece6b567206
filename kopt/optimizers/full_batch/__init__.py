"""Optimizers that see all data at each step, and `minimize`."""
