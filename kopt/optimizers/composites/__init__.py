"""Optimizers made of several."""
