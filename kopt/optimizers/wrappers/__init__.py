"""Optimizers that change the rule of another one."""
