"""The update rules in float64 NumPy, written from the papers: the oracle of the tests.

A reference `rule(w, **hyper)` takes the first weights of one parameter and returns a function `step`. Each call of
`step(g)` is one step t = 1, 2, ... with the gradient g and returns the new weights. A learning rate is a number or a
function of t. Weight decay is decoupled (arXiv:1711.05101): with the direction u of the rule,

    w <- w - lr (u + weight_decay w)

unless the reference says otherwise. A joint reference, of a rule that looks at all weights together, takes and returns
lists. Each module lists its own in `RULES` and `JOINT`, by the name of the class.
"""

import importlib
import pathlib

import numpy as np

_MODULES = [importlib.import_module(f"references.{p.stem}") for p in pathlib.Path(__file__).parent.glob("[a-z]*.py")]
RULES = {name: rule for module in _MODULES for name, rule in getattr(module, "RULES", {}).items()}
JOINT = {name: rule for module in _MODULES for name, rule in getattr(module, "JOINT", {}).items()}
MATRIX = {name for module in _MODULES for name in getattr(module, "MATRIX", ())}
"""Rules whose products of matrices make rounding errors grow."""
UNDECAYED = {name for module in _MODULES for name in getattr(module, "UNDECAYED", ())}
"""Rules whose matrices do not decay."""


def allowed(name, usual, of_matrices=1e-4):
    """Returns by how much a rule may differ from its reference, relative to the largest weight."""
    return of_matrices if name in MATRIX else usual


NOISE = 0.2


def pull(weight):
    """Returns the curvatures h of the function that rules see which look at the loss: h/2 d² + (1 + g) d, d = w - w₁.

    Of g no more than `NOISE` counts, so that the function of one step resembles that of the next.
    """
    return np.linspace(1, 4, weight.size).reshape(weight.shape)


def tilted(weights, first, gradients):
    """Returns loss and gradients of that function."""
    moves = [w - a for w, a in zip(weights, first, strict=True)]
    gs = [pull(d) * d + 1 + np.clip(g, -NOISE, NOISE) for d, g in zip(moves, gradients, strict=True)]
    return sum((d * (g - pull(d) * d / 2)).sum() for d, g in zip(moves, gs, strict=True)), gs


def curvature(g):
    """Returns what rules that divide by the curvature take for it: of both signs, and as large as a gradient or more.

    Args:
        g: gradient, an array or a tensor.
    """
    return 100 * g * (abs(g) + 2)


def descend(name, weights, gradients, **hyper):
    """Returns the weights after a step with each of the gradients.

    Raises:
        LookupError: no module here has a reference of that name.
    """
    if name not in RULES and name not in JOINT:
        raise LookupError(
            f"{name} has no reference. Write it from the paper in a module of tests/support/references/, and put it "
            f"under {name!r} into RULES there (JOINT if it looks at all weights together)."
        )
    if name in JOINT:
        step = JOINT[name](weights, **hyper)
    else:
        steps = [RULES[name](w, **hyper) for w in weights]
        step = lambda gs: [f(g) for f, g in zip(steps, gs, strict=True)]  # noqa: E731
    looks, first = getattr(step, "needs_loss", False), weights
    for gs in gradients:
        if looks:
            value, gs = tilted(weights, first, gs)
        weights = step(gs, loss=value) if looks else step(gs)
    return weights
