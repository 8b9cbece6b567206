"""Trains a small language model with ten optimizers, and counts the steps to one fixed loss.

    python -m benchmarks.language_model [--rows AdamW Muon] [--trials 6] [--seeds 8] [--time] [--write]
    python -m benchmarks.language_model --trials 0 --seeds 0 --write       # only the page, from what has been run

The protocol is that of a speed run: text, batches, architecture and the shape of the schedule are fixed; a row chooses
its rule, and finds its rate and decay in `TRIALS` trials from a declared space, which is log-uniform and the same
quantiles for all rows. The best trial is run again with eight seeds, which are other first weights and another order of
the batches, the same for all rows. Every run is a file in `benchmarks/language_model/`; what is there is not run again.
The text is the source of Python's standard library: its hash is in each file, and files of another text, or of another
protocol, are not used. `--time` times the steps of all rows, which take turns; that needs a quiet machine, the runs do
not. `--write` makes the table, the picture and the page language-model.md.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import kopt
from benchmarks import _turns
from kopt.checkpoint import atomic_files
from recipes.compare.decoder import decoder
from recipes.compare.protocol import log_uniform, p_value, places, steps_to

FOLDER = Path(__file__).parent / "language_model"
CLOCK = "milliseconds-a-step.json"
PAGE, PICTURE = FOLDER.parent / "language-model.md", FOLDER.parents[1] / "docs" / "language-model.png"
COMMAND = "python -m benchmarks.language_model"

BYTES = 2_000_000
"""Of the text; a twentieth is held out."""
CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 64, 128, 4, 5, 16
STEPS, WARMUP, EVERY, HELD_OUT = 400, 20, 10, 64
"""Updates of a run, those of the warm-up, updates between evaluations, and sequences of an evaluation."""
TARGET = 2.25
"""The loss to reach, in nats a byte, on what is held out."""
TRIALS, SEEDS, BASE = 6, 8, "AdamW"
LOW, HIGH = 1e-3, 0.3
"""The space of the decay, of every row that decays."""
ADAM = {"beta_2": 0.95}
ROUNDS = 10
"""Turns of each row when steps are timed."""
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Row(NamedTuple):
    """An optimizer, from a rate and a decay, and the space of its rate."""

    make: Callable[[Any, float], Any]
    low: float
    high: float


def _options(decay: float) -> dict[str, Any]:
    """Returns what all have in common: every row of the embedding moves at every step, as in other libraries."""
    return {"weight_decay": decay, "sparse": "exact"}


ROWS: dict[str, Row] = {
    "AdamW": Row(lambda rate, decay: kopt.AdamW(rate, **_options(decay), **ADAM), 1e-4, 1e-2),
    "AdamW + Hyperball": Row(
        lambda rate, decay: kopt.Hyperball(kopt.AdamW(rate, **_options(decay), **ADAM)), 3e-4, 1e-1
    ),
    "Lion": Row(lambda rate, decay: kopt.Lion(rate, **_options(decay)), 3e-5, 3e-3),
    "Prodigy": Row(lambda rate, decay: kopt.Prodigy(rate, **_options(decay), **ADAM), 0.3, 3.0),
    "Schedule-Free AdamW": Row(lambda rate, decay: kopt.ScheduleFreeAdamW(rate, **_options(decay), **ADAM), 1e-3, 1e-1),
    "Muon": Row(lambda rate, decay: kopt.Muon(rate, **_options(decay)), 3e-4, 3e-2),
    "NorMuon": Row(lambda rate, decay: kopt.NorMuon(rate, **_options(decay)), 3e-4, 3e-2),
    "SOAP": Row(lambda rate, decay: kopt.SOAP(rate, **_options(decay)), 3e-4, 3e-2),
    "Shampoo": Row(lambda rate, decay: kopt.Shampoo(rate, **_options(decay)), 1e-3, 1e-1),
    "Adafactor": Row(lambda rate, decay: kopt.Adafactor(rate, **_options(decay)), 1e-3, 1e-1),
}


# ------------------------------------------------------------------------------------------------- data and model


def text() -> np.ndarray:
    """Returns the bytes of the modules of the standard library, in the order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return np.frombuffer(b"".join(path.read_bytes() for path in files)[:BYTES], "uint8")


def protocol(known: np.ndarray) -> str:
    """Returns a hash of all that two runs must have in common to be compared."""
    sizes = [CONTEXT, WIDTH, HEADS, LAYERS, BATCH, STEPS, WARMUP, EVERY, HELD_OUT]
    return hashlib.sha256(json.dumps(sizes).encode() + known.tobytes()).hexdigest()[:16]


def parts(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sequences to learn from and those held out, each with one byte more than the context."""
    width = CONTEXT + 1
    rows = known[: len(known) // width * width].reshape(-1, width).astype("int32")
    held_out = np.arange(len(rows)) % 20 == 0
    few = rows[held_out]
    return rows[~held_out], few[np.linspace(0, len(few) - 1, HELD_OUT).astype(int)]


def model() -> Any:
    """Returns a decoder with attention, about a million parameters."""
    return decoder(CONTEXT, WIDTH, HEADS, LAYERS)


# ------------------------------------------------------------------------------------------------- one run


def quantiles(trial: int) -> tuple[float, ...]:
    """Returns the places of a trial in the spaces of rate and decay, each of which is covered evenly."""
    return places(TRIALS, 2)[trial]


def setting(row: Row, trial: int) -> tuple[float, float]:
    """Returns the rate and the decay of a trial."""
    of_rate, of_decay = quantiles(trial)
    return log_uniform(row.low, row.high, of_rate), log_uniform(LOW, HIGH, of_decay)


def prepared(row: Row, rate: float, decay: float, seed: int) -> tuple[keras.Model, Any, Callable[[Any], Any]]:
    """Returns a model with its first weights, its optimizer, and a step from a batch to its loss."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    schedule = kopt.schedules.WarmupStableDecay(rate, steps=10 * STEPS, warmup=WARMUP, decay=1)
    net, optimizer = model(), row.make(schedule, decay)
    net.compile(optimizer, LOSS)

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = LOSS(batch[:, 1:], net(batch[:, :-1], training=True))
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        return loss

    optimizer.build(net.trainable_variables)
    return net, optimizer, step


def train(row: Row, rate: float, decay: float, seed: int, known: np.ndarray, steps: int = STEPS) -> dict[str, Any]:
    """Trains until the target is reached; returns the losses on what is held out, and what the state takes."""
    learnt, held_out = parts(known)
    net, optimizer, step = prepared(row, rate, decay, seed)
    average = kopt.AveragedWeights() if hasattr(optimizer, "averages") else None
    if average is not None:
        average.set_model(net)

    @tf.function(autograph=False)
    def evaluate() -> Any:
        return LOSS(held_out[:, 1:], net(held_out[:, :-1], training=False))

    def held_out_loss() -> float:
        if average is None:
            return float(evaluate())
        with average.weights():
            return float(evaluate())

    rng, losses = np.random.default_rng(seed), [(0, float(evaluate()))]
    for i in range(1, steps + 1):
        loss = float(step(ops.convert_to_tensor(learnt[rng.integers(len(learnt), size=BATCH)])))
        if i % EVERY == 0:
            losses.append((i, held_out_loss()))
        if not math.isfinite(loss) or losses[-1][1] <= TARGET:
            break
    parameters = sum(math.prod(v.shape) for v in net.trainable_variables)
    return {"losses": losses, "bytes": kopt.state_bytes(optimizer, net) / parameters, "parameters": parameters}


# ------------------------------------------------------------------------------------------------- all runs


def file_of(row: str, kind: str, number: int) -> Path:
    """Returns the file of a run."""
    return FOLDER / f"{row.lower().replace(' + ', '-').replace(' ', '-')}.{kind}{number}.json"


def read(row: str, kind: str, number: int, of: str) -> dict[str, Any] | None:
    """Returns a run, None if there is none of this protocol and of this space of the row."""
    path = file_of(row, kind, number)
    run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = run.get("protocol") == of and (run["rate"], run["decay"]) == setting(ROWS[row], run["trial"])
    return run if same else None


def better(run: dict[str, Any]) -> tuple[float, float]:
    """Returns what makes one trial better than another: fewer steps, then the least loss."""
    return steps_to(TARGET, run["losses"]), min((x for _, x in run["losses"] if math.isfinite(x)), default=math.inf)


def best(row: str, of: str) -> int | None:
    """Returns the best trial of a row."""
    found = {i: read(row, "trial", i, of) for i in range(TRIALS)}
    runs = {i: better(run) for i, run in found.items() if run is not None}
    return min(runs, key=lambda i: runs[i]) if runs else None


def planned(row: str, trials: int, seeds: int, of: str) -> Iterator[tuple[Path, int, int]]:
    """Yields file, trial and seed of the runs of a row that are missing; the seeds come when the trials are there."""
    for i in range(trials):
        if read(row, "trial", i, of) is None:
            yield file_of(row, "trial", i), i, 0
    if seeds and (chosen := best(row, of)) is not None:
        for seed in range(1, seeds + 1):
            run = read(row, "seed", seed, of)
            if run is None or run["trial"] != chosen:
                yield file_of(row, "seed", seed), chosen, seed


def run_all(rows: list[str], trials: int, seeds: int) -> None:
    """Runs what is missing."""
    known = text()
    of = protocol(known)
    FOLDER.mkdir(exist_ok=True)
    atomic_files.remove_leftovers(FOLDER)
    for row in rows:
        for path, trial, seed in planned(row, trials, seeds, of):
            rate, decay = setting(ROWS[row], trial)
            begun = time.perf_counter()
            found = train(ROWS[row], rate, decay, seed, known)
            run = {"protocol": of, "row": row, "trial": trial, "rate": rate, "decay": decay, "seed": seed, **found}
            with atomic_files.atomic_file(path) as part:
                part.write_text(json.dumps(run) + "\n", encoding="utf-8")
            print(
                f"{path.stem}: rate {rate:.2g}, decay {decay:.2g}, {steps_to(TARGET, found['losses']):.0f} steps to "
                f"{TARGET}, last loss {found['losses'][-1][1]:.3f}, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )


def time_steps(rows: list[str]) -> None:
    """Times the steps of rows, which take turns, at the settings of their first trials."""
    learnt, _ = parts(text())
    batch = ops.convert_to_tensor(learnt[:BATCH])
    steps = {row: prepared(ROWS[row], *setting(ROWS[row], 0), seed=0)[2] for row in rows}
    for step in steps.values():
        step(batch)
    runs = {row: functools.partial(_turns.clock, functools.partial(step, batch)) for row, step in steps.items()}
    times = _turns.take_turns(runs, ROUNDS)
    FOLDER.mkdir(exist_ok=True)
    with atomic_files.atomic_file(FOLDER / CLOCK) as part:
        medians = {row: round(statistics.median(t), 2) for row, t in times.items()}
        part.write_text(json.dumps(medians, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------- the page


def table(of: str) -> list[str]:
    """Returns the rows that have seeds, the fewest steps first, as Markdown."""
    timed = json.loads((FOLDER / CLOCK).read_text(encoding="utf-8")) if (FOLDER / CLOCK).exists() else {}
    seeds = {row: [r for i in range(1, SEEDS + 1) if (r := read(row, "seed", i, of))] for row in ROWS}
    counts = {row: [min(steps_to(TARGET, r["losses"]), STEPS) for r in runs] for row, runs in seeds.items() if runs}
    if not counts:
        return ["No row has run with its seeds yet."]
    lines = ["| optimizer | rate | decay | seeds | steps | ± | AdamW/steps | p | seconds | bytes/parameter |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    base = counts.get(BASE, [])
    for row, steps in sorted(counts.items(), key=lambda item: statistics.mean(item[1])):
        runs, mean = seeds[row], statistics.mean(steps)
        missed = sum(steps_to(TARGET, r["losses"]) > STEPS for r in runs)
        spread = f"{statistics.stdev(steps):.1f}" if len(steps) > 1 else ""
        tested = row != BASE and min(len(steps), len(base)) > 1
        cells = (
            f"`{row}`",
            f"{runs[0]['rate']:.2g}",
            f"{runs[0]['decay']:.2g}",
            str(len(runs)),
            f"{mean:.0f}" + (f", {missed} never" if missed else ""),
            spread,
            f"{statistics.mean(base) / mean:.2f}" if base else "",
            _shown(p_value(steps, base)) if tested else "",
            f"{mean * timed[row] / 1e3:.1f}" if row in timed else "not timed",
            f"{statistics.median(r['bytes'] for r in runs):.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shown(p: float) -> str:
    return f"{p:.1g}" if p > 1e-15 else "< 1e-15"


def draw(of: str) -> None:
    """Draws the mean loss of the seeds of each row, or of its best trial."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, row in enumerate(ROWS):
        runs = [r for n in range(1, SEEDS + 1) if (r := read(row, "seed", n, of))]
        chosen = best(row, of)
        runs = runs or ([] if chosen is None else [read(row, "trial", chosen, of) or {}])
        if runs:
            length = min(len(r["losses"]) for r in runs)
            losses = np.array([[x for _, x in r["losses"][:length]] for r in runs])
            steps = [t for t, _ in runs[0]["losses"][:length]]
            axes.plot(steps, losses.mean(0), label=row, color=f"C{i}")
            if len(runs) > 1:
                axes.fill_between(steps, losses.min(0), losses.max(0), color=f"C{i}", alpha=0.15, lw=0)
    axes.axhline(TARGET, color="gray", ls="--", lw=1)
    axes.set(xlabel="step", ylabel="held-out loss, nats a byte", ylim=(TARGET - 0.1, TARGET + 1.1), xlim=(0, STEPS))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    with atomic_files.atomic_file(PICTURE) as part:
        figure.savefig(part, dpi=120, format="png")


def write() -> None:
    """Writes picture and page."""
    of = protocol(text())
    draw(of)
    start, end, page = "<!-- results -->\n", "<!-- /results -->", PAGE.read_text(encoding="utf-8")
    shown = f"![Held-out loss by step](../docs/{PICTURE.name})"
    machine = f"Text and protocol {of}; {_turns.machine('Keras', 'TensorFlow')}"
    result = "\n".join([*table(of), "", machine, "", shown])
    PAGE.write_text(f"{page.split(start)[0]}{start}{result}\n{end}{page.split(end)[1]}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="rows to run")
    parser.add_argument("--trials", type=int, choices=range(TRIALS + 1), default=TRIALS, help="first trials of a row")
    parser.add_argument("--seeds", type=int, choices=range(SEEDS + 1), default=SEEDS, help="runs of the best trial")
    parser.add_argument("--time", action="store_true", help="time the steps of the rows")
    parser.add_argument("--write", action="store_true", help="make the page and the picture")
    flags = parser.parse_args(arguments)
    run_all(flags.rows, flags.trials, flags.seeds)
    if flags.time:
        time_steps(flags.rows)
    if flags.write:
        write()


if __name__ == "__main__":
    main()
