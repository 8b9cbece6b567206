"""The tables of backends.md: what each backend gives, beside TensorFlow."""

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import backend_runs
from backend_cases import HEADINGS, SECTIONS


def measured(before: Mapping[str, Any], measure: Set[str]) -> dict[str, Any]:
    """Returns the differences between backends, by section, case and backend: a number, or the error that refuses it.

    Args:
        before: what was measured before.
        measure: the sections that are measured anew; with "missing" also what others do not have yet.
    """
    found: dict[str, Any] = {}
    for section_name, cases in SECTIONS.items():
        known = {} if section_name in measure else before.get(section_name, {})
        lacking = {name: case for name, case in cases.items() if name not in known}
        new = {} if measure.isdisjoint((section_name, "missing")) else _compared(section_name, lacking)
        found[section_name] = {name: (known | new)[name] for name in cases if name in known or name in new}
    return found


def _compared(section_name: str, cases: Mapping[str, backend_runs.Case]) -> dict[str, Any]:
    """Returns the differences between backends, by case and backend."""
    if not cases:
        return {}
    names = {f"{section_name}/{name}": case for name, case in cases.items()}
    with ThreadPoolExecutor() as pool:  # each waits for a process
        every = {
            backend: pool.submit(backend_runs.run, backend, backend_runs.on(backend, names))
            for backend in (backend_runs.REFERENCE, *backend_runs.OTHERS)
        }
    expected = every.pop(backend_runs.REFERENCE).result()
    differences = {backend: backend_runs.compared(names, expected, made.result()) for backend, made in every.items()}
    return {
        name: {
            backend: _rounded(own[f"{section_name}/{name}"])
            for backend, own in differences.items()
            if f"{section_name}/{name}" in own
        }
        for name in cases
    }


def _rounded(difference: float | str) -> float | str:
    """Returns a difference with two digits."""
    return difference if isinstance(difference, str) else float(f"{difference:.1e}")


def tables(differences: Mapping[str, Any]) -> str:
    """Returns the differences between backends as Markdown, a table a section."""
    made = []
    for section_name, cases in SECTIONS.items():
        lines = [f"## {HEADINGS[section_name]}\n", f"| | {' | '.join(backend_runs.OTHERS.values())} | remark |"]
        lines += [f"|---|{'---:|' * len(backend_runs.OTHERS)}---|"]
        for name, case in cases.items():
            own = differences[section_name].get(name, {})
            cells = [
                _told(case, own.get(backend, "not measured")) if backend in case.only else "-"
                for backend in backend_runs.OTHERS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {case.remark} |")
        made.append("\n".join([*lines, ""]))
    return "\n".join(made)


def _told(case: backend_runs.Case, difference: float | str) -> str:
    """Returns what a table says of a difference."""
    if isinstance(difference, str):
        return difference.replace("|", "\\|").replace("\n", " ")
    return f"{100 * difference:.2g} % differ" if case.counted else f"{difference:.1e}" if difference else "0"
