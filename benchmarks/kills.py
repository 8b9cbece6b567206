"""Kills training runs at random moments, starts them again, and compares what comes out with runs that nobody killed.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--recipes mnist text_classification recommendation] [--write]
    python -m benchmarks.kills --found kills.jsonl    # can be ended and started again: kills in the file count

A run is started with `--resume auto`, killed, started again, and so on; after some kills it may come to its end. Its
weights, the state of its optimizer and its history must then be those of a run that was never killed, bit for bit. Of
ten kills four wait until something is being written, three for a number of steps, two for the end of the training, and
one comes while the process starts. Signals and moments follow from the seed.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import _turns

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
INTERVAL = 4
"""Steps from one checkpoint to the next."""
COMMON = f"--save-every {INTERVAL}s --run-name run --resume auto --progress none"
RECIPES = {
    "mnist": "--data digits --model mlp --epochs 6 --batch-size 256 --ema 0.9 --early-stopping 5 --augment",
    "text_classification": "--epochs 3 --batch-size 8 --max-train-examples 96 --max-eval-examples 32 --max-length 16",
    "recommendation": "--data synthetic --model two-tower --epochs 3 --batch-size 4096 --dropout 0.1",
}
AT_MOST = 5
"""Kills of one run, before it may come to its end."""


@dataclasses.dataclass
class Kill:
    """What became of one kill.

    Attributes:
        recipe: which one.
        signal: its name.
        phase: what the process was doing: "starting", "training" or "ending".
        writing: whether a file was being written.
        lost: steps that had to be done again; None before the first step.
        wrong: what should not have been, if anything.
    """

    recipe: str
    signal: str
    phase: str
    writing: bool
    lost: int | None = None
    wrong: str = ""


def train(recipe: str, pipe: int, arguments: Sequence[str]) -> int:
    """Trains, in a process of its own, and writes into a pipe where it is; returns the exit code."""
    import importlib

    from recipes.run import fit, signals

    def tell(what: str, *place: int) -> None:
        os.write(pipe, f"{what} {' '.join(map(str, place))}\n".encode())

    run, restore, save_model = fit.Run.fit, fit.Run._restore, fit.Run.save_model

    def fit_and_tell(self: Any, *args: Any, **options: Any) -> None:
        from kopt.checkpoint import Checkpoint

        end = Checkpoint.on_train_batch_end

        def ended(self: Any, batch: int, logs: Any = None) -> None:
            if self._pending is None:
                tell("step", self._epoch, batch + 1)
            end(self, batch, logs)

        Checkpoint.on_train_batch_end = ended
        try:
            run(self, *args, **options)
        finally:
            Checkpoint.on_train_batch_end = end  # what is trained after it, as a refit, has other steps

    def restore_and_tell(self: Any, checkpoint: Any, model: Any) -> int:
        epoch = restore(self, checkpoint, model)
        tell("from", *checkpoint.place)
        return epoch

    def save_and_tell(self: Any, model: Any) -> None:
        tell("end")
        save_model(self, model)

    fit.Run.fit, fit.Run._restore, fit.Run.save_model = fit_and_tell, restore_and_tell, save_and_tell
    module = importlib.import_module(f"recipes.{recipe}")
    caught = signals.caught

    @contextlib.contextmanager
    def caught_and_told() -> Iterator[None]:
        with caught():
            tell("main")
            yield
            tell("left")

    signals.caught = caught_and_told
    code: int = module.main(["train", *arguments])
    return code


class Life:
    """A process that trains, from its start to its end."""

    def __init__(self, recipe: str, folder: pathlib.Path) -> None:
        self.run = folder / "saved_models" / recipe / "run"
        self._told = ""
        reads, writes = os.pipe()
        os.set_blocking(reads, False)
        self._reads: int | None = reads
        arguments = [*RECIPES[recipe].split(), *COMMON.split()]
        command = [sys.executable, "-m", "benchmarks.kills", "--train", recipe, str(writes), *arguments]
        root = str(pathlib.Path(__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": path,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | quiet,
            pass_fds=[writes],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_hear_signals,
        )
        os.close(writes)
        self.began = time.monotonic()

    def _listen(self) -> list[list[str]]:
        """Returns what the process has told so far."""
        with contextlib.suppress(BlockingIOError):
            while self._reads is not None and (part := os.read(self._reads, 2**16)):
                self._told += part.decode()
        return [line.split() for line in self._told.splitlines()]

    def has_told(self, what: str) -> bool:
        """Returns whether the process has come to a place: "main", "from", "step", "end", "left"."""
        return any(words[:1] == [what] for words in self._listen())

    def places(self, what: str) -> list[tuple[int, int]]:
        """Returns epochs and batches that it has told: "from" where it went on, "step" that it has trained."""
        return [(int(words[1]), int(words[2])) for words in self._listen() if words[:1] == [what] and len(words) == 3]

    def is_writing(self) -> bool:
        """Returns whether some file is on its way to its place."""
        places = (self.run, self.run / "checkpoints", self.run / "adapter")
        return any(name.startswith(".part-") for place in places if place.is_dir() for name in _listed(place))

    def end(self, seconds: float = 600) -> tuple[int, str]:
        """Waits for its end; returns the exit code and what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=seconds)
        self._listen()
        if self._reads is not None:
            os.close(self._reads)
            self._reads = None
        return self.process.returncode, errors.decode(errors="replace")


def _hear_signals() -> None:
    for name in SIGNALS[1:]:  # a job in the background may have been told to ignore them
        signal.signal(getattr(signal, name), signal.SIG_DFL if name != "SIGINT" else signal.default_int_handler)


def _listed(folder: pathlib.Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def result(run: pathlib.Path) -> dict[str, Any]:
    """Returns the arrays that a complete run ends with, and its history without the times."""
    import h5py
    from safetensors.numpy import load_file

    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    found: dict[str, Any] = {k: v for k, v in load_file(last / "arrays.safetensors").items() if k[0] in "mo"}
    adapter = run / "adapter" / "adapter_model.safetensors"
    if adapter.is_file():
        found |= load_file(adapter)
    if (run / "model.keras").is_file():
        import io
        import zipfile

        with zipfile.ZipFile(run / "model.keras") as whole, h5py.File(io.BytesIO(whole.read("model.weights.h5"))) as h5:
            h5.visititems(lambda name, x: found.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
    with (run / "history.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found | {"history": rows}


def differs(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Returns the names of what is not the same, bit for bit."""
    unequal = [
        key
        for key in ours.keys() | theirs.keys()
        if key not in ours
        or key not in theirs
        or (ours[key] != theirs[key] if key == "history" else not _equal(ours[key], theirs[key]))
    ]
    return f"other than without kills: {', '.join(sorted(unequal)[:3])}" if unequal else ""


def _equal(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes() and np.shape(a) == np.shape(b)


def kill_and_restart(recipe: str, kills: int, draw: random.Random) -> Iterator[Kill]:
    """Yields what became of each kill of a recipe."""
    if kills < 1:
        return
    with tempfile.TemporaryDirectory() as work:
        whole = pathlib.Path(work, "whole")
        whole.mkdir()
        life = Life(recipe, whole)
        while not life.has_told("main"):
            time.sleep(0.01)
        begin = time.monotonic() - life.began
        code, errors = life.end()
        if code:
            raise RuntimeError(f"{recipe} ends with {code} without a kill:\n{errors[-2000:]}")
        expected = result(life.run)
        steps = max(step for _, step in life.places("step"))
        done = 0
        while done < kills:
            folder = pathlib.Path(work, f"run-{done}")
            folder.mkdir()
            several, reached = list[Kill](), 0
            for _ in range(min(AT_MOST, kills - done)):
                life = Life(recipe, folder)
                kill = end_by_signal(life, recipe, Moment.drawn(draw, begin, steps))
                reached = note_loss(several, reached, life, steps)
                several.append(kill)
                done += 1
                if life.process.returncode == 0:
                    break
            life = Life(recipe, folder)
            code, errors = life.end()
            note_loss(several, reached, life, steps)
            left = [path.name for path in folder.rglob(".*")]
            wrong = f"ends with {code}: {errors[-300:]}" if code else differs(result(life.run), expected)
            several[-1].wrong = several[-1].wrong or wrong or (f"left behind: {left}" if left else "")
            yield from several


@dataclasses.dataclass
class Moment:
    """When to send which signal: after some steps of this process, or at its end, and some seconds."""

    name: str
    steps: int
    at_end: bool
    writing: bool
    seconds: float

    @classmethod
    def drawn(cls, draw: random.Random, begin: float, steps: int) -> "Moment":
        """Returns a moment: one in ten while the process starts, two at its end, four while something is written."""
        kind, name = draw.choices(("start", "step", "write", "end"), (1, 3, 4, 2))[0], draw.choice(SIGNALS)
        seconds = draw.uniform(0, {"start": 1.5 * begin, "step": 0.1, "write": 0, "end": 2}[kind])
        return cls(name, 0 if kind == "start" else draw.randint(1, 2 * steps), kind == "end", kind == "write", seconds)

    def has_come(self, life: Life) -> bool:
        """Returns whether a process is so far, but for the seconds."""
        if self.at_end:
            return life.has_told("end")
        return len(life.places("step")) >= self.steps and (not self.writing or life.is_writing())


def end_by_signal(life: Life, recipe: str, moment: Moment) -> Kill:
    """Ends a process by a signal, and returns how it ended."""
    name = moment.name
    while life.process.poll() is None and not moment.has_come(life):
        time.sleep(0.0001)
    if moment.seconds:
        with contextlib.suppress(subprocess.TimeoutExpired):
            life.process.wait(moment.seconds)
    writing = life.is_writing()
    alive = life.process.poll() is None
    if alive:
        life.process.send_signal(getattr(signal, name))
    phase = "ending" if not alive or life.has_told("end") else "training" if life.has_told("step") else "starting"
    code, errors = life.end()
    kill, number = Kill(recipe, name, phase, writing and alive), int(getattr(signal, name))
    fine = {-number, 0} if name == "SIGKILL" or not life.has_told("main") else {0, 128 + number}
    if alive and life.has_told("main") and name != "SIGKILL" and code == -number:
        fine.add(-number if life.has_told("left") else 0)  # Python itself is at its end
    if (alive or code) and code not in fine:
        kill.wrong = f"{name} while {phase} gives exit code {code}: {errors[-300:]}"
    elif "Traceback" in errors and life.has_told("main"):
        kill.wrong = f"{name} while {phase}: {errors[-300:]}"
    return kill


def note_loss(several: Sequence[Kill], reached: int, life: Life, steps: int) -> int:
    """Notes what the kills before a life have cost, and returns the step that has been reached."""
    if not (begins := life.places("from")):
        return reached
    begin = begins[0][0] * steps + begins[0][1]
    for kill in several:
        if kill.lost is None:
            kill.lost = max(0, reached - begin)
            if kill.lost > INTERVAL:
                kill.wrong = kill.wrong or f"{kill.lost} steps lost"
    return max([begin, *(epoch * steps + step for epoch, step in life.places("step"))])


def table(found: Sequence[Kill]) -> list[str]:
    """Returns the results as lines of Markdown."""
    lines = ["| recipe | kills | by signal | starting, training, ending | while writing | most steps lost | wrong |"]
    lines.append("|---|---:|---|---|---:|---:|---:|")
    for recipe in dict.fromkeys(kill.recipe for kill in found):
        own = [kill for kill in found if kill.recipe == recipe]
        signals = collections.Counter(kill.signal for kill in own)
        phases = collections.Counter(kill.phase for kill in own)
        cells = [
            recipe,
            len(own),
            ", ".join(f"{name} {signals[name]}" for name in SIGNALS),
            ", ".join(str(phases[phase]) for phase in ("starting", "training", "ending")),
            sum(kill.writing for kill in own),
            f"{max(kill.lost or 0 for kill in own)} of {INTERVAL}",
            sum(bool(kill.wrong) for kill in own),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def read(path: pathlib.Path) -> list[Kill]:
    """Returns the kills in a file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Kill(**json.loads(line)) for line in lines]


def main() -> int:
    """Kills, prints the table, and with --write puts it into README.md; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all recipes together")
    parser.add_argument("--seed", type=int, default=0, help="of signals and moments")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--found", type=pathlib.Path, help="file of kills, to which new ones are added")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.train:
        return train(flags.train[0], int(flags.train[1]), flags.train[2:])
    found = [] if flags.found is None else read(flags.found)
    for i, recipe in enumerate(flags.recipes):
        share, done = (flags.kills + i) // len(flags.recipes), sum(kill.recipe == recipe for kill in found)
        for kill in kill_and_restart(recipe, share - done, random.Random(f"{flags.seed} {recipe} {done}")):
            line = json.dumps(dataclasses.asdict(kill))
            print(line, flush=True)
            found.append(kill)
            if flags.found is not None:
                with flags.found.open("a") as file:
                    file.write(f"{line}\n")
    lines = [*table(found), "", f"Seed {flags.seed}; {_turns.machine('Keras', 'TensorFlow')}"]
    print("\n".join(lines))
    if flags.write:
        _turns.insert("\n".join(lines), "kills")
    return int(any(kill.wrong for kill in found))


if __name__ == "__main__":
    sys.exit(main())
