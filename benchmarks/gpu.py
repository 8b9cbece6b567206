"""Times optimizers and LoRA on one accelerator, with JAX or torch as the backend of Keras.

    KERAS_BACKEND=torch python -m benchmarks.gpu [--rounds 10] [--write]

Neither TensorFlow nor optax nor peft need be there: what is not installed has no row. On a machine without a GPU the
same is run small, to see that it runs, and the result says so. It takes less than 8 minutes.

The bytes of a step are those that it must read and write: weights and state twice, gradients once. Their share of the
bandwidth is that of a copy of one large array, which is measured between the same rounds.
"""

import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "jax")

import keras
import numpy as np

import kopt
from benchmarks import _turns

BACKEND = keras.backend.backend()
RANK = 8
COPY = "a copy"
RULES: dict[str, Callable[[], Any]] = {
    "kopt.AdamW": kopt.AdamW,
    "kopt.Momentum": kopt.Momentum,
    "kopt.Lion": kopt.Lion,
    "kopt.AdaBound": kopt.AdaBound,
    "kopt.AdEMAMix": kopt.AdEMAMix,
    "kopt.LAMB": kopt.LAMB,
    "kopt.Prodigy": kopt.Prodigy,
    "keras.optimizers.AdamW": keras.optimizers.AdamW,
}
OPTAX = {"adamw": ("kopt.AdamW", 2), "sgd": ("kopt.Momentum", 1), "lion": ("kopt.Lion", 1), "lamb": ("kopt.LAMB", 2)}
"""Transformations of optax: the rule that does the same, and arrays of state like the weights."""
TORCH = {"AdamW": ("kopt.AdamW", 2), "SGD": ("kopt.Momentum", 1), "Adam": ("kopt.AdamW", 2)}
"""Fused optimizers of torch, likewise."""

Step = Callable[[], Any]


# ------------------------------------------------------------------------------------------------- the machine


def device() -> str:
    """Returns the name of the accelerator, "" without one."""
    if BACKEND == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    import jax

    first = jax.devices()[0]
    return "" if first.platform == "cpu" else str(first.device_kind)


def finished(value: Any) -> None:
    """Waits until the device has computed a value."""
    if BACKEND == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    else:
        import jax

        jax.block_until_ready(value)


def timed(step: Step) -> Callable[[], float]:
    """Returns a function that gives the milliseconds of a step, the mean of a few; two were done before."""
    for _ in range(2):
        finished(step())

    def run() -> float:
        start = time.perf_counter()
        for _ in range(_turns.CALLS):
            value = step()
        finished(value)
        return (time.perf_counter() - start) / _turns.CALLS * 1e3

    return run


def sizes() -> tuple[int, int, int]:
    """Returns the width and the number of the square weights, and the examples of a batch."""
    return (4096, 8, 4096) if device() else (64, 2, 32)


def drawn(count: int, scale: float, seed: int) -> list[Any]:
    """Returns square arrays."""
    rng, width = np.random.default_rng(seed), sizes()[0]
    return [(scale * rng.standard_normal((width, width), dtype="float32")) for _ in range(count)]


# ------------------------------------------------------------------------------------------------- optimizers


def copy_of(numbers: int) -> Step:
    """Returns a function that copies an array of float32."""
    source = keras.ops.ones((numbers,))
    if BACKEND == "torch":
        import torch

        there = torch.empty_like(source)
        return lambda: there.copy_(source)
    import jax

    return functools.partial(jax.jit(lambda x: x + 1), source)


def rule(make: Callable[[], Any]) -> tuple[Step, int]:
    """Returns a step of an optimizer of Keras' kind, compiled as in `fit`, and its bytes."""
    count = sizes()[1]
    variables = [keras.Variable(a) for a in drawn(count, 0.02, 0)]
    gradients = [keras.ops.convert_to_tensor(a) for a in drawn(count, 0.01, 1)]
    optimizer = make()
    optimizer.build(variables)
    weights = sum(v.value.nbytes for v in variables)
    traffic = 3 * weights + 2 * sum(v.value.nbytes for v in optimizer.variables)
    if BACKEND == "torch":
        import torch

        def step() -> None:
            with torch.no_grad():
                optimizer.apply(gradients, variables)

        return step, traffic
    import jax

    compiled = jax.jit(
        lambda state, gradients: optimizer.stateless_apply(state[1], gradients, state[0]), donate_argnums=0
    )
    held = [([v.value for v in variables], [v.value for v in optimizer.variables])]

    def once() -> Any:
        held[0] = compiled(held[0], gradients)
        return held[0]

    return once, traffic


def of_torch(name: str, states: int) -> tuple[Step, int]:
    """Returns a fused step of torch, and its bytes."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    count = sizes()[1]
    parameters = [torch.nn.Parameter(torch.from_numpy(a).to(place)) for a in drawn(count, 0.02, 0)]
    for parameter, gradient in zip(parameters, drawn(count, 0.01, 1), strict=True):
        parameter.grad = torch.from_numpy(gradient).to(place)
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(parameters, lr=1e-3, fused=True, **options)
    return optimizer.step, (3 + 2 * states) * sum(p.nbytes for p in parameters)


def of_optax(name: str, states: int) -> tuple[Step, int]:
    """Returns a compiled step of optax, and its bytes."""
    import jax
    import optax

    count = sizes()[1]
    weights, gradients = ([jax.numpy.asarray(a) for a in drawn(count, s, i)] for i, s in enumerate((0.02, 0.01)))
    options = {"momentum": 0.9} if name == "sgd" else {}
    transform = getattr(optax, name)(1e-3, **options)

    def update(state: Any, gradients: Any) -> Any:
        updates, inner = transform.update(gradients, state[1], state[0])
        return optax.apply_updates(state[0], updates), inner

    compiled = jax.jit(update, donate_argnums=0)
    held = [(weights, transform.init(weights))]
    traffic = (3 + 2 * states) * sum(w.nbytes for w in weights)

    def once() -> Any:
        held[0] = compiled(held[0], gradients)
        return held[0]

    return once, traffic


def peers() -> dict[str, tuple[str, Callable[[], tuple[Step, int]]]]:
    """Returns, by name, the rule that a peer is compared with, and what makes its step."""
    if BACKEND == "torch":
        return {
            f"torch.optim.{name}(fused=True)": (ours, functools.partial(of_torch, name, states))
            for name, (ours, states) in TORCH.items()
        }
    if importlib.util.find_spec("optax") is None:
        return {}
    return {
        f"optax.{name}": (ours, functools.partial(of_optax, name, states)) for name, (ours, states) in OPTAX.items()
    }


def optimizers(rounds: int) -> list[str]:
    """Returns the table of optimizers."""
    made = {name: functools.partial(rule, make) for name, make in RULES.items()}
    made |= {name: make for name, (_, make) in peers().items()}
    numbers = 2**28 if device() else 2**20
    copying, times, traffic = timed(copy_of(numbers)), dict[str, list[float]](), {COPY: 8 * numbers}
    for name, make in made.items():  # one after the other: together they would not fit into the memory
        step, traffic[name] = make()
        turn = _turns.take_turns({COPY: copying, name: timed(step)}, rounds)
        times[COPY] = times.get(COPY, []) + turn[COPY]
        times[name] = turn[name]
        del step, turn
    middle = {name: statistics.median(values) for name, values in times.items()}
    speed = {name: traffic[name] / ms / 1e6 for name, ms in middle.items()}
    lines = ["| optimizer | ms a step | GB/s | of a copy | of its peer |", "|---|---:|---:|---:|---:|"]
    for name in made:
        peer = next((p for p, (ours, _) in peers().items() if ours == name), None)
        ratio = "-" if peer is None else f"{middle[name] / middle[peer]:.2f} × {peer}"
        cells = (f"{middle[name]:.2f}", f"{speed[name]:.1f}", f"{100 * speed[name] / speed[COPY]:.0f} %", ratio)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    width, count, _ = sizes()
    return [*lines, "", f"{count} weights {width} × {width}, float32. A copy: {speed[COPY]:.0f} GB/s."]


# ------------------------------------------------------------------------------------------------- LoRA


def dense(lora: bool) -> Step:
    """Returns a function that fits a stack of Dense layers to one batch, with all weights or with LoRA."""
    width, count, batch = sizes()
    x = inputs = keras.Input((width,))
    for _ in range(count):
        x = keras.layers.Dense(width, "relu")(x)
    model = keras.Model(inputs, x)
    if lora:
        kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=RANK, target_modules="all-linear"))
    model.compile(kopt.AdamW(1e-4), "mse")
    data = np.random.default_rng(0).standard_normal((batch, width), dtype="float32")
    return lambda: model.train_on_batch(data, data)


def of_peft() -> Step:
    """Returns a step of Hugging Face peft on the same stack."""
    import peft
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    width, count, batch = sizes()
    layers = [layer for _ in range(count) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    names = [str(2 * i) for i in range(count)]
    config = peft.LoraConfig(r=RANK, target_modules=names)
    model = peft.get_peft_model(torch.nn.Sequential(*layers).to(place), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    data = np.random.default_rng(0).standard_normal((batch, width), dtype="float32")

    def step() -> float:
        x = torch.from_numpy(data).to(place)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model.base_model.model(x), x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def adapters(rounds: int) -> list[str]:
    """Returns the table of LoRA."""
    made = {"kopt.peft.LoRA": functools.partial(dense, True), "all weights": functools.partial(dense, False)}
    if BACKEND == "torch" and importlib.util.find_spec("peft") is not None:
        made["peft, LoRA"] = of_peft
    times = _turns.take_turns({name: timed(make()) for name, make in made.items()}, rounds)
    lines = ["| training step | ms | of kopt's LoRA |", "|---|---:|---:|"]
    for name, values in times.items():
        ratio = _turns.ratio(times, name, "kopt.peft.LoRA")
        lines.append(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f} |")
    width, count, batch = sizes()
    return [*lines, "", f"{count} Dense layers {width} × {width}, {batch} examples, rank {RANK}."]


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    packages = [name for name in ("Keras", "JAX", "torch", "optax", "peft") if importlib.util.find_spec(name.lower())]
    scope = f"{rounds} rounds, the backend {BACKEND}; {_turns.machine(*packages, accelerator=device() or 'no GPU')}"
    warning = [] if device() else ["Run small on a CPU: this says that it runs, and nothing about a GPU.", ""]
    return [*warning, *optimizers(rounds), "", *adapters(rounds), "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "gpu", 10, table)
