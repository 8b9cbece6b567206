"""Times one optimizer step on the weights of a small BERT, against Keras and torch.

    python -m benchmarks.step [--rounds 15] [--write]

133 variables, 13.9 million parameters. The contestants take turns, round after round, so that other work on the
machine falls on all of them; torch runs in a process of its own, where its threads do not disturb TensorFlow's. The
table gives the median over the rounds and, as the figures to go by, the medians of the ratios within a round.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PAGE = pathlib.Path(__file__).parent / "README.md"
START, END = "<!-- step -->", "<!-- /step -->"
CALLS = 5  # steps timed together in one round


def shapes(blocks: int = 8) -> list[tuple[int, ...]]:
    """Returns the shapes of the weights: embeddings, blocks of attention and feed-forward, with their norms."""
    width, heads, inner = 320, 10, 1280
    layer = [(width, heads, width // heads), (heads, width // heads)] * 3
    layer += [(heads, width // heads, width), (width,), (width,), (width,)]
    layer += [(width, inner), (inner,), (inner, width), (width,), (width,), (width,)]
    return [(12000, width), (512, width), (2, width), (width,), (width,), *layer * blocks]


def arrays(scale: float, seed: int, of: list[tuple[int, ...]]) -> list[Any]:
    """Returns random values for the weights or their gradients."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=s)).astype("float32") for s in of]


def clock(step: Callable[[], Any]) -> float:
    """Returns the milliseconds of one step, the mean of a few."""
    start = time.perf_counter()
    for _ in range(CALLS):
        step()
    return (time.perf_counter() - start) / CALLS * 1e3


def serve_torch(connection: Any) -> None:
    """Answers each message with the milliseconds of a fused AdamW step."""
    import torch

    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(0.02, 0, shapes())]
    for parameter, g in zip(parameters, arrays(0.01, 1, shapes()), strict=True):
        parameter.grad = torch.from_numpy(g)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    clock(optimizer.step)
    connection.send(torch.__version__)
    while connection.recv():
        connection.send(clock(optimizer.step))


def contestants() -> dict[str, Callable[[], float]]:
    """Returns, by name, functions that time one round."""
    import keras
    import tensorflow as tf

    import kopt

    gradients = [tf.constant(g) for g in arrays(0.01, 1, shapes())]

    def steps(optimizer: Any) -> dict[str, Callable[[], Any]]:
        variables = [keras.Variable(a) for a in arrays(0.02, 0, shapes())]
        optimizer.build(variables)

        def eager() -> None:
            optimizer.apply(gradients, variables)

        return {
            "eager": eager,
            "tf.function": tf.function(eager, autograph=False),
            "XLA": tf.function(eager, autograph=False, jit_compile=True),
        }

    made = {"kopt.Adam": kopt.Adam(), "keras.optimizers.Adam": keras.optimizers.Adam(), "kopt.AdamW": kopt.AdamW()}
    timed = {f"{name}, {mode}": step for name, optimizer in made.items() for mode, step in steps(optimizer).items()}
    for step in timed.values():
        step()
    return {name: functools.partial(clock, step) for name, step in timed.items()}


def measure(rounds: int) -> tuple[dict[str, list[float]], str]:
    """Returns the milliseconds of every round by contestant, and the versions."""
    import keras
    import tensorflow as tf

    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve_torch, args=(theirs,), daemon=True)
    child.start()
    torch_version = ours.recv()
    times: dict[str, list[float]] = {}
    runs = contestants()
    for _ in range(rounds):
        for name, run in runs.items():
            times.setdefault(name, []).append(run())
        ours.send(True)
        times.setdefault("torch.optim.AdamW(fused=True)", []).append(ours.recv())
    ours.send(False)
    child.join()
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, torch {torch_version}"
    return times, f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores, no GPU"


def table(times: dict[str, list[float]], versions: str, rounds: int) -> str:
    """Returns the results as Markdown."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    lines = ["| contestant | ms a step, median |", "|---|---:|"]
    lines += [f"| {name} | {statistics.median(t):.1f} |" for name, t in times.items()]
    lines += ["", "| comparison | measured | aim |", "|---|---:|---:|"]
    for mode, aim in (("eager", 8), ("tf.function", 2), ("XLA", 1)):
        faster = ratio(f"keras.optimizers.Adam, {mode}", f"kopt.Adam, {mode}")
        lines.append(f"| {mode}: kopt.Adam is faster than Keras' by | {faster:.2f} × | ≥ {aim} × |")
    for mode in ("eager", "tf.function"):
        slower = ratio(f"kopt.AdamW, {mode}", "torch.optim.AdamW(fused=True)")
        lines.append(f"| kopt.AdamW, {mode}: time of torch's fused AdamW | {slower:.2f} × | ≤ 1.5 × |")
    return "\n".join([*lines, "", f"{rounds} rounds; {versions}."])


def insert(result: str, start: str, end: str) -> None:
    """Puts a table into README.md, between two marks."""
    head, _, rest = PAGE.read_text().partition(start)
    PAGE.write_text(f"{head}{start}\n{result}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Measures, prints the table, and with --write puts it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    arguments = parser.parse_args()
    result = table(*measure(arguments.rounds), arguments.rounds)
    print(result)
    if arguments.write:
        insert(result, START, END)


if __name__ == "__main__":
    main()
