"""Training recipes: one readable file each, run as `python -m recipes.NAME`."""
