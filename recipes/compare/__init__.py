"""Compare: several optimizers on one task, each tuned under the same budget."""

from .recipe import Compare as Compare
from .recipe import main as main
