"""Adapters on a whole model."""
