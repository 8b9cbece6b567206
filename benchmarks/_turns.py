"""What the benchmarks of steps share: contestants that take turns, a peer in its own process, the page of results."""

import argparse
import contextlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PAGE = pathlib.Path(__file__).parent / "README.md"
CALLS = 5  # steps timed together in one round
Times = dict[str, list[float]]


def clock(step: Callable[[], Any]) -> float:
    """Returns the milliseconds of one step, the mean of a few."""
    start = time.perf_counter()
    for _ in range(CALLS):
        step()
    return (time.perf_counter() - start) / CALLS * 1e3


@contextlib.contextmanager
def apart(make: Callable[[], Callable[[], Any]]) -> Iterator[Callable[[], float]]:
    """Gives a function that times the step that `make` returns, in a process where its threads disturb nobody."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(make, theirs), daemon=True)
    child.start()

    def run() -> float:
        ours.send(True)
        return float(ours.recv())

    run()
    yield run
    ours.send(False)
    child.join()


def _serve(make: Callable[[], Callable[[], Any]], connection: Any) -> None:
    step = make()
    while connection.recv():
        connection.send(clock(step))


def peak(imports: str, make: str) -> tuple[int, int, float]:
    """Returns the peak memory in MB of a process that does three steps, of it what the imports take, and the mean loss.

    Args:
        imports: statements.
        make: expression of a function that does a step and returns its loss.
    """
    program = (
        f"import resource; {imports};"
        "now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; imported = now();"
        f"once = {make}; losses = [once() for _ in range(3)]; print(now(), imported, sum(losses) / 3)"
    )
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    most, imported, loss = done.stdout.split()[-3:]
    return int(most), int(imported), float(loss)


def take_turns(runs: dict[str, Callable[[], float]], rounds: int) -> Times:
    """Returns the milliseconds of every round by contestant; every second round is in the opposite order."""
    times: Times = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            times[name].append(runs[name]())
    return times


def compare(times: Times, comparisons: Iterable[tuple[str, str, str, str]], digits: int) -> list[str]:
    """Returns the medians as a table, and the medians of ratios within a round as another.

    Args:
        times: milliseconds by contestant and round.
        comparisons: of each its name, the contestant above the line, the one below, and the aim.
        digits: of the milliseconds.
    """
    lines = ["| contestant | ms a step, median |", "|---|---:|"]
    lines += [f"| {name} | {statistics.median(t):.{digits}f} |" for name, t in times.items()]
    lines += ["", "| comparison | measured | aim |", "|---|---:|---:|"]
    for name, above, below, aim in comparisons:
        lines.append(f"| {name} | {ratio(times, above, below):.2f} × | {aim} |")
    return lines


def ratio(times: Times, above: str, below: str) -> float:
    """Returns the median over the rounds of the time of one contestant in units of another's."""
    return statistics.median(x / y for x, y in zip(times[above], times[below], strict=True))


def machine(*packages: str, accelerator: str = "no GPU") -> str:
    """Returns the versions of packages and of Python, the number of cores and the accelerator."""
    found = (f"{name} {importlib.metadata.version(name.lower())}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(found)}, Python {platform.python_version()}, {cores} core{'s' * (cores != 1)}, {accelerator}."


def written(name: str) -> str:
    """Returns what stands in README.md between the marks of a name."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(f"<!-- {name} -->") : text.index(f"<!-- /{name} -->")]


def insert(result: str, name: str) -> None:
    """Puts a table into README.md, between the marks of that name."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(f"{text[: text.index(start)]}{start}\n{result}\n{text[text.index(end) :]}", encoding="utf-8")


def main(doc: str | None, name: str, rounds: int, table: Callable[[int], list[str]]) -> None:
    """Measures, prints the table, and with --write puts it into README.md.

    Args:
        doc: description of the command.
        name: of the marks in README.md.
        rounds: default of --rounds.
        table: function of the rounds that returns the lines of the table.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contestant")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    arguments = parser.parse_args()
    result = "\n".join(table(arguments.rounds))
    print(result)
    if arguments.write:
        insert(result, name)
