"""Bench: every optimizer on forty small problems, and twelve of them on five tasks, as a board to repeat."""

from .recipe import Bench as Bench
from .recipe import main as main
