"""The recipes by one process and by several workers, side by side.

    python -m benchmarks.same_result

Runs each command once as it is and once by `kopt launch`, and prints the largest difference of a weight, and that of
the losses that both report. Dropout is off, because each replica draws its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SMALL = "--max-train-examples 96 --max-eval-examples 32 --max-length 32 --batch-size 16 --epochs 1"
COMMANDS = [
    "mnist --data digits --model mlp --dropout 0 --epochs 2",
    "mnist --data digits --model cnn --dropout 0 --epochs 1 --max-steps 1",
    f"text_classification --dropout 0 --backbone-dropout 0 {SMALL} --method lora",
    f"text_classification --dropout 0 --backbone-dropout 0 {SMALL} --method head",
    "recommendation --task rating --no-refit --epochs 1 --max-steps 20",
    "recommendation --task retrieval --model mf --no-refit --epochs 1 --max-steps 20",
    "recommendation --task retrieval --no-refit --epochs 1 --max-steps 20",
    "recommendation --task sequential --no-refit --epochs 1 --max-steps 20",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the commands to run")
    given = parser.parse_args()
    kopt, off = [sys.executable, "-W", "ignore", "-m", "kopt"], 0.0
    print("| command | weights | losses |\n|---|---:|---:|")
    for command in (c for c in COMMANDS if given.only in c):
        with tempfile.TemporaryDirectory() as place:
            folders = [Path(place, name) for name in ("one", "several")]
            for folder, how in zip(folders, ([], ["launch", "--workers", str(given.workers)]), strict=True):
                argv = [*kopt, *how, *command.split(), "--output-dir", str(folder), "--track", "none"]
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
                    return done.returncode
            one, several = (weights(folder) for folder in folders)
            metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        losses = max(abs(metrics[0][name] - metrics[1][name]) for name in LOSSES if name in metrics[0])
        found = float(np.abs(one - several).max())
        off = max(off, found)
        print(f"| `{command}` | {found:.1e} | {losses:.1e} |", flush=True)
    return int(off > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
