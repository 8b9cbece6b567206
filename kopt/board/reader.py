"""Reads the committed figures of the board; nothing here computes with tensors.

The files, all JSON, beside this module or in another folder that `kopt bench` has written:

- `problems.json`: `protocol`, a digest of all that makes the figures; `factors`, multiples of its own rate that a rule
  may try; `seeds`, runs that judge; `left_out`, rules without a row, and why; `problems` by name: `family`, `why`,
  `threshold` and `steps`.
- `rows/<rule>.json`: `rule`, `class`, `own_rate`, `arguments` other than the defaults, `first_seed`, `seconds`,
  `protocol`, and `problems` by name: `trials`, the error with each of the rates, and `errors`, those of the runs with
  the best of them that judge; null is an error that is not finite.
- `tasks.json`: `tasks` by name: `about`, `metric`, `target`, `steps`, `trials`, `seeds`, and `rows`: a `TaskResult` a
  rule.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
LONGEST = 4.0
"""Largest ratio of a time to that of the fastest rule that a score looks at; that of AlgoPerf."""


class Problem(NamedTuple):
    """One of the small problems."""

    family: str
    why: str
    """What a rule needs to pass."""
    threshold: float
    """The largest error that passes."""
    steps: int


class Verdict(NamedTuple):
    """How a rule does on a problem. An error that is not finite is `inf`."""

    threshold: float
    trials: tuple[float, ...]
    """Error with each rate, one run each."""
    errors: tuple[float, ...]
    """Errors of the runs with the best rate, other seeds than that of the trials."""
    factor: float
    """The best rate, as a multiple of the rule's own."""

    @property
    def seeds_passed(self) -> int:
        """Returns how many of the runs that judge are within the threshold."""
        return sum(error <= self.threshold for error in self.errors)

    @property
    def rates_passed(self) -> int:
        """Returns how many of the rates are."""
        return sum(error <= self.threshold for error in self.trials)

    @property
    def passed(self) -> bool:
        """Returns whether most of the runs that judge are."""
        return 2 * self.seeds_passed > len(self.errors)

    @property
    def is_close(self) -> bool:
        """Returns whether some of the runs that judge pass and some fail: another seed may change the verdict."""
        return 0 < self.seeds_passed < len(self.errors)

    @property
    def error(self) -> float:
        """Returns the median of the runs that judge."""
        return statistics.median(self.errors)


class Row(NamedTuple):
    """How a rule does on all problems."""

    rule: str
    class_name: str
    own_rate: float
    arguments: Mapping[str, Any]
    """Other than the defaults."""
    seconds: float
    protocol: str
    first_seed: int
    verdicts: Mapping[str, Verdict]
    """By the name of the problem."""

    @property
    def passed(self) -> int:
        """Returns the number of problems that it passes."""
        return sum(verdict.passed for verdict in self.verdicts.values())

    def by_family(self, known: Mapping[str, Problem] | None = None) -> dict[str, tuple[int, int]]:
        """Returns how many problems of each family it passes, and of how many.

        Args:
            known: the problems, as of `problems`; None: those of the board that comes with kopt.
        """
        found = dict[str, tuple[int, int]]()
        for name, problem in (problems() if known is None else known).items():
            passed, count = found.get(problem.family, (0, 0))
            found[problem.family] = passed + self.verdicts[name].passed, count + 1
        return found


class TaskResult(NamedTuple):
    """How a rule does on a task, by the runs of its best trial."""

    rule: str
    learning_rate: float | None
    """Of the best trial; None if no trial worked."""
    reached: int
    """Runs that reached the target."""
    runs: int
    steps: float | None
    """To the target, mean of the runs; one that does not reach it counts with all its steps."""
    seconds: float | None
    """Of training until then."""
    last: float | None
    """Mean of the metric at the end."""

    @property
    def solved(self) -> bool:
        """Whether most runs reached the target."""
        return 2 * self.reached > self.runs


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _about(folder: Path) -> Any:
    return _read(folder / "problems.json")


def protocol(folder: Path = FOLDER) -> str:
    """Returns the digest that rows share which can be compared."""
    return str(_about(folder)["protocol"])


def problems(folder: Path = FOLDER) -> dict[str, Problem]:
    """Returns the problems by name, family by family."""
    return {name: Problem(**found) for name, found in _about(folder)["problems"].items()}


def left_out(folder: Path = FOLDER) -> dict[str, str]:
    """Returns the rules that have no row by name, and why."""
    return dict(_about(folder)["left_out"])


def rows(folder: Path = FOLDER) -> dict[str, Row]:
    """Returns the rows by the name of the rule, in lower case, sorted; none where nothing has run."""
    paths = sorted((folder / "rows").glob("*.json"))
    about = _about(folder) if paths else {}
    return {path.stem: as_row(_read(path), about) for path in paths}


def row(rule: str, folder: Path = FOLDER) -> Row | None:
    """Returns the row of a rule by its name, in any case; None if it has none."""
    path = folder / "rows" / f"{rule.lower()}.json"
    return as_row(_read(path), _about(folder)) if path.exists() else None


def as_row(found: Mapping[str, Any], about: Mapping[str, Any]) -> Row:
    """Returns the row that a file holds, judged by what `problems.json` holds; other problems are left out."""
    known = about["problems"]
    verdicts = {
        name: _verdict(found["problems"][name], known[name], about) for name in known if name in found["problems"]
    }
    facts = {key: found[key] for key in ("rule", "own_rate", "arguments", "seconds", "protocol", "first_seed")}
    return Row(class_name=found["class"], verdicts=verdicts, **facts)


def _verdict(found: Mapping[str, Any], problem: Mapping[str, Any], about: Mapping[str, Any]) -> Verdict:
    trials, errors = (tuple(math.inf if x is None else float(x) for x in found[key]) for key in ("trials", "errors"))
    factor = about["factors"][min(range(len(trials)), key=trials.__getitem__)]
    return Verdict(problem["threshold"], trials, errors, factor)


def tasks(folder: Path = FOLDER) -> dict[str, dict[str, TaskResult]]:
    """Returns the results by task and by rule; without `tasks.json` none."""
    found = facts_of_tasks(folder)
    return {name: {row["rule"]: TaskResult(**row) for row in task["rows"]} for name, task in found.items()}


def facts_of_tasks(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Returns what `tasks.json` says of each task; without that file nothing."""
    path = folder / "tasks.json"
    return dict(_read(path)["tasks"]) if path.exists() else {}


# ---------------------------------------------------------------------------------------------- performance profiles


def profile(results: Mapping[str, Mapping[str, TaskResult]], rule: str, by: str = "steps") -> list[float]:
    """Returns the ratio of a rule's time to that of the fastest rule, for each task; `inf` where it does not solve it.

    Args:
        results: by task and rule, as of `tasks`.
        rule: its name.
        by: "steps" or "seconds".

    Reference: Dolan and Moré, 2002, doi:10.1007/s101070100263.
    """
    ratios = list[float]()
    for found in results.values():
        times = {name: float(getattr(result, by)) for name, result in found.items() if result.solved}
        ratios.append(times[rule] / min(times.values()) if rule in times else math.inf)
    return ratios


def score(ratios: Sequence[float], longest: float = LONGEST) -> float:
    """Returns the mean share of the tasks that are solved within a ratio, over ratios from 1 to `longest`; from 0 to 1.

    It is the area below the profile, the score of AlgoPerf.

    Reference: Dahl et al., 2023, arXiv:2306.07179, section 4.
    """
    return sum(max(0.0, longest - ratio) for ratio in ratios) / ((longest - 1) * len(ratios)) if ratios else 0.0
