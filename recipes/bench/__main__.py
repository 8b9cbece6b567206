"""Runs the recipe from the command line."""

import sys

from .recipe import main

if __name__ == "__main__":
    sys.exit(main())
