"""Pictures made for the tests of the recipe: coloured squares, whose class is the colour."""

import numpy as np
import recipe_commands
from PIL import Image

from recipes.images import main

COLORS = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}
OTHERS = {"violet": (150, 40, 200)}


def picture(name, rng, side=40):
    """A square of a colour on noise, somewhere."""
    pixels = rng.integers(0, 120, (side, side + 8, 3)).astype(np.uint8)
    top, left = rng.integers(0, side // 2, 2)
    pixels[top : top + side // 2, left : left + side // 2] = (COLORS | OTHERS)[name]
    return Image.fromarray(pixels)


def write_folder(folder, count, seed, names=tuple(COLORS)):
    """Writes that many pictures of each class."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(name, rng).save(folder / name / f"{i}.png")
    return folder


fails, command = recipe_commands.of(main)
