"""The row of a rule: what its runs come to on each problem, what is kept of that, and how two rows differ."""

import ast
import contextlib
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kopt import board

from ..run.errors import DataError
from ..run.folder import atomic
from .descent import Branches, Descents
from .problem import Problem

FACTORS = tuple(4.0**k for k in range(-2, 5))
"""The rates that each rule may try: these multiples of its own, from 1/16 to 256."""
SEEDS = 3
"""Runs at the best rate, with other first weights and noise than the trials, that judge."""
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"galore": {"rank": 2}, "apollo": {"rank": 2}}
"""Arguments other than the default: the default rank is larger than the matrices here."""
LEFT_OUT = {
    "sophiag": "its curvature is taken from labels that a model draws, and these functions have no labels; SophiaH, "
    "the same rule with Hutchinson's estimate, is on the board",
}
"""Rules that have no row, and why."""


def protocol(problems: Sequence[Problem]) -> str:
    """Returns what tells two boards apart: a digest of all code that makes the figures, without its docstrings."""
    digest = hashlib.sha256(repr((FACTORS, SEEDS, [problem.name for problem in problems])).encode())
    for name in ("problem", "vectors", "networks", "descent"):
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


def own_rate(cls: Any) -> float:
    """Returns the learning rate that a rule has by default."""
    return float(f"{float(cls().learning_rate):.7g}")


def make_row(
    name: str, cls: Any, problems: Sequence[Problem], functions: Sequence[Branches], first_seed: int = 0
) -> dict[str, Any]:
    """Runs a rule on all problems.

    Args:
        name: of the rule.
        cls: its class.
        problems: all of them.
        functions: their functions, as of `branches`.
        first_seed: of the trials; the runs that judge have the ones after it.
    """
    begun, arguments = time.perf_counter(), dict(ARGUMENTS.get(name, {}))
    with _quiet():
        descents, rate = Descents(lambda: cls(**arguments), functions), own_rate(cls)
        found = {problem.name: runs(problem, descents, rate, first_seed) for problem in problems}
    return {
        "rule": name,
        "class": cls.__name__,
        "own_rate": rate,
        "arguments": arguments,
        "first_seed": first_seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "protocol": protocol(problems),
        "problems": found,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what is so for every board: each rule has loops of its own, and some make rows of a table dense."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is not row-wise")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def runs(problem: Problem, descents: Any, rate: float, first_seed: int) -> dict[str, list[float | None]]:
    """Returns what a rule comes to on a problem: one run with each rate, then those with the best rate that judge."""
    trials = [descents.error(problem, rate * factor, first_seed) for factor in FACTORS]
    best = FACTORS[min(range(len(FACTORS)), key=trials.__getitem__)]
    errors = [descents.error(problem, rate * best, first_seed + 1 + i) for i in range(SEEDS)]
    return {"trials": [_short(x) for x in trials], "errors": [_short(x) for x in errors]}


def _short(x: float) -> float | None:
    """Returns a number with three digits, as JSON has it: None where it is not finite."""
    return float(f"{x:.3g}") if math.isfinite(x) else None


# ------------------------------------------------------------------------------------------------------------- files


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, a line for each problem."""
    head = json.dumps({k: v for k, v in content.items() if k != "problems"}, ensure_ascii=False)
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in content["problems"].items()]
    with atomic(path) as part:
        part.write_text(head[:-1] + ', "problems": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any] | None:
    """Returns what a file holds; None if there is none.

    Raises:
        DataError: it is not JSON.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Remove it, so that it is made again.") from error
    return found


# ------------------------------------------------------------------------------------------------------- differences


def differences(row: board.Row, before: board.Row) -> dict[str, list[str]]:
    """Returns the problems whose verdicts differ between two rows.

    Those `within` the noise: in one of the rows the seeds disagree with each other. Those `beyond` it: all seeds of one
    row pass, and none of the other.
    """
    found: dict[str, list[str]] = {"within": [], "beyond": []}
    for name, ours in row.verdicts.items():
        theirs = before.verdicts.get(name)
        if theirs is not None and ours.passed != theirs.passed:
            found["within" if ours.is_close or theirs.is_close else "beyond"].append(name)
    return found
