"""Recommendation: models of ratings, of what to show a user, and of what comes next."""

from .flags import Train as Train
from .recipe import main as main
