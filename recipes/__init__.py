"""Training recipes, run as `python -m recipes.NAME`: a file or a folder each; run/ and readers/ are shared."""
