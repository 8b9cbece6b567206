"""The recipes by one process and by several workers, side by side.

    python -m benchmarks.same_result
    sudo python -m benchmarks.same_result --workers 4 --hosts      # in network namespaces, each with its own address

Runs each command once as it is and once by `kopt launch`, or by one process a host, and prints the largest difference
of a weight, and that of the losses that both report. Dropout is off, because each replica draws its own. The cnn of
`mnist` is left out: in float32 rounding decides which of its units at zero are active, and with them the rest.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import _hosts

KOPT = [sys.executable, "-W", "ignore", "-m", "kopt"]
SMALL = "--max-train-examples 96 --max-eval-examples 32 --max-length 32 --batch-size 16 --epochs 1"
SMOOTH = "--optimizer momentum --learning-rate 0.1"
"""Adam divides by the size of a gradient, also where that is rounding."""
COMMANDS = [
    "mnist --data digits --model mlp --dropout 0 --epochs 2",
    f"text_classification --dropout 0 --backbone-dropout 0 {SMALL} --method lora",
    f"text_classification --dropout 0 --backbone-dropout 0 {SMALL} --method head",
    "recommendation --dropout 0 --task rating --no-refit --epochs 1 --max-steps 20",
    "recommendation --dropout 0 --task retrieval --model mf --no-refit --epochs 1 --max-steps 20",
    f"recommendation --dropout 0 --task retrieval --no-refit --epochs 1 --max-steps 20 {SMOOTH}",
    f"recommendation --dropout 0 --task sequential --no-refit --epochs 1 --max-steps 20 {SMOOTH}",
]
LOSSES = ("validation_loss", "test_loss", "test_rmse", "test_ndcg_at_10")


def weights(folder: Path) -> np.ndarray:
    """Returns all weights that a run has saved, as one array."""
    if (folder / "adapter").is_dir():
        from safetensors.numpy import load_file

        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])
    import keras
    import keras_hub  # noqa: F401  # Keras asks for its layers

    import kopt  # noqa: F401
    import recipes.recommendation.models  # noqa: F401

    model = keras.models.load_model(folder / "model.keras", compile=False)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def run(commands: list[list[str]]) -> None:
    """Runs commands side by side.

    Raises:
        SystemExit: one failed; with its exit code, after what it said.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, **pipes)) for command in commands]
        said = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            print(text[-4000:], file=sys.stderr)
            raise SystemExit(process.returncode)


def several(arguments: list[str], workers: int, hosts: bool) -> None:
    """Runs a recipe by several workers: on this machine, or on as many hosts."""
    if not hosts:
        return run([[*KOPT, "launch", "--workers", str(workers), *arguments]])
    with _hosts.network(workers) as found:
        all_of_them = ["--distribute", "multiworker", "--workers", _hosts.addresses(found)]
        places = [[*all_of_them, "--worker-index", str(i)] for i in range(workers)]
        run([host.command(*KOPT, *arguments, *place) for host, place in zip(found, places, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hosts", action="store_true", help="a network namespace for each worker (Linux, as root)")
    parser.add_argument("--only", default="", help="part of the commands to run")
    given = parser.parse_args()
    off = 0.0
    print("| command | weights | losses |\n|---|---:|---:|")
    for command in (c for c in COMMANDS if given.only in c):
        with tempfile.TemporaryDirectory() as place:
            folders = [Path(place, name) for name in ("one", "several")]
            alone, together = ([*command.split(), "--output-dir", str(f), "--track", "none"] for f in folders)
            run([[*KOPT, *alone]])
            several(together, given.workers, given.hosts)
            one, other = (weights(folder) for folder in folders)
            metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        losses = max(abs(metrics[0][name] - metrics[1][name]) for name in LOSSES if name in metrics[0])
        found = float(np.abs(one - other).max())
        off = max(off, found)
        print(f"| `{command}` | {found:.1e} | {losses:.1e} |", flush=True)
    return int(off > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
