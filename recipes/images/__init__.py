"""Pictures: fine-tune a backbone to classify them, evaluate it, use it, export it."""

from .recipe import Train as Train
from .recipe import main as main
