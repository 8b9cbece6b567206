"""The table of peft-parity.md: each method beside Hugging Face peft, on a layer of each kind, on each backend."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import method_peers

BACKENDS = ("tensorflow", "jax", "torch")
WAYS = ("peft to kopt", "kopt to peft", "merged")
_SCRIPT = pathlib.Path(method_peers.__file__)


def measured(before: Mapping[str, Any], anew: bool) -> dict[str, Any]:
    """Returns what `method_peers` finds, by backend and case; with `anew` it is measured again."""
    return {backend: _measure(backend) for backend in BACKENDS} if anew else dict(before)


def _measure(backend: str) -> Any:
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(_SCRIPT.parents[2])}
    done = subprocess.run([sys.executable, str(_SCRIPT)], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(found: Mapping[str, Any]) -> str:
    """Returns the methods as Markdown: at each kind of layer the largest difference of all ways and backends."""
    lines = [f"| method | {' | '.join(method_peers.KINDS)} | trainable, kopt and peft |", "|---|" + "---:|" * 5]
    found = {backend: found.get(backend, {}) for backend in BACKENDS}
    for case in method_peers.CASES:
        cells = [_cell([found[b].get(case, {}).get(kind) for b in BACKENDS]) for kind in method_peers.KINDS]
        kind = "Embedding" if cells[0] == "-" else "Dense"
        own = [found[b].get(case, {}).get(kind) for b in BACKENDS]
        counts = sorted({tuple(f["count"]) for f in own if f})
        lines.append(f"| {case} | {' | '.join(cells)} | {'; '.join(f'{a} and {b}' for a, b in counts)} |")
    return "\n".join([*lines, ""])


def _cell(kinds: list[Any]) -> str:
    if not any(kinds):
        return "-"
    return f"{max(f[way] / max(1, f['effect']) for f in kinds for way in WAYS):.1e}"
