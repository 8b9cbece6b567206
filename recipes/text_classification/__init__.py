"""Text classification: fine-tune a pretrained language model on labelled texts."""

from .recipe import Train as Train
from .recipe import main as main
