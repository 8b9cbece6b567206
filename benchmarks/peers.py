"""Ways to run the optimizers of torch, optax and TensorFlow's kernels on given gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

import kopt

RATE = 2.0**-5
TINY = 1e-30
"""ε where it is to count for nothing."""

Arrays = list[np.ndarray]
Run = Callable[[Arrays, list[Arrays], float], list[Arrays]]
Case = tuple[Callable[[float], Any], str, Run, str]
"""What makes kopt's rule from its decay, the name of the peer, its run, and why they differ where they do."""


def made(name: str, rate: float = RATE, **options: Any) -> Callable[[float], Any]:
    """Returns what makes a rule of kopt from its decay."""
    return lambda d: getattr(kopt, name)(learning_rate=rate, weight_decay=d, **options)


def curvature(g: np.ndarray) -> np.ndarray:
    """Returns what rules that divide by the curvature take for it, here and there: of both signs."""
    return 10 * g * (np.abs(g) + 1)


def on_torch(
    make: Callable[[Any, float], Any], last_first: bool = False, decoupled: bool = False, curved: bool = False
) -> Run:
    """Returns a run of a torch optimizer.

    Args:
        make: makes it from parameters and decay.
        last_first: give it the axis of the outputs first, as torch has it.
        decoupled: decay the weights in front of its step, as AdamW does, instead of telling it.
        curved: tell it the curvature, too.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    there = (lambda x: np.moveaxis(x, -1, 0).copy()) if last_first else np.copy
    back = (lambda x: np.moveaxis(x, 0, -1).copy()) if last_first else np.copy

    def run(weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
        parameters = [torch.nn.Parameter(torch.tensor(there(w))) for w in weights]
        optimizer, points = make(parameters, 0.0 if decoupled else decay), []
        if hasattr(optimizer, "train"):
            optimizer.train()
        for gs in steps:
            for p, g in zip(parameters, gs, strict=True):
                p.grad = torch.tensor(there(g))
                p.data.mul_(1 - RATE * decay if decoupled else 1)
            optimizer.step(**({"hessian": [torch.tensor(there(curvature(g))) for g in gs]} if curved else {}))
            points.append([back(p.detach().numpy()) for p in parameters])
        return points

    return run


def on_matrices(make: Callable[[Any, float], Any], beta_1: float = 0.9, vectors: Any = None) -> Run:
    """Returns a run of a torch optimizer on kernels as matrices [outputs, inputs].

    Args:
        make: makes it from parameters and decay.
        beta_1: of the AdamW that moves vectors.
        vectors: makes what moves them instead.
    """
    import torch

    torch.set_default_dtype(torch.float64)

    def run(weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
        def there(x: np.ndarray) -> np.ndarray:
            return x.reshape(-1, x.shape[-1]).T.copy() if x.ndim > 1 else x.copy()

        parameters = [torch.nn.Parameter(torch.tensor(there(w))) for w in weights]

        def adamw(ps: Any, decay: float) -> Any:
            return torch.optim.AdamW(ps, RATE, betas=(beta_1, 0.95), weight_decay=decay)

        both = (
            make([p for p in parameters if p.ndim > 1], decay),
            (vectors or adamw)([p for p in parameters if p.ndim < 2], decay),
        )
        points = []
        for gs in steps:
            for p, g in zip(parameters, gs, strict=True):
                p.grad = torch.tensor(there(g))
            for optimizer in both:
                optimizer.step()
            done = [p.detach().numpy() for p in parameters]
            points.append([x.T.reshape(w.shape).copy() for x, w in zip(done, weights, strict=True)])
        return points

    return run


def on_optax(make: Callable[[float], Any]) -> Run:
    """Returns a run of an optax transformation."""
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)

    def run(weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
        ws: Any = [jax.numpy.asarray(w) for w in weights]
        transform = make(decay)
        state, points = transform.init(ws), []
        for gs in steps:
            updates, state = transform.update([jax.numpy.asarray(g) for g in gs], state, ws)
            ws = optax.apply_updates(ws, updates)
            points.append([np.asarray(w) for w in ws])
        return points

    return run


def on_kernels(step: Callable[[tf.Variable, tf.Variable, np.ndarray], None], start: float) -> Run:
    """Returns a run of one of TensorFlow's update kernels with an accumulator; the decay goes in front of it."""

    def run(weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
        pairs = [(tf.Variable(w), tf.Variable(np.full_like(w, start))) for w in weights]
        points = []
        for gs in steps:
            for (w, a), g in zip(pairs, gs, strict=True):
                w.assign(w * (1 - RATE * decay))
                step(w, a, g)
            points.append([w.numpy() for w, _ in pairs])
        return points

    return run
