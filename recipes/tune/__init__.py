"""Tune: search over the flags of another recipe."""

from .recipe import Tune as Tune
from .recipe import main as main
