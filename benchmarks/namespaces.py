"""Workers that reach each other over a network: each in a network namespace with an address of its own.

    sudo python -m benchmarks.namespaces

For Linux, as root. Makes namespaces on a bridge, trains `mnist` in them, and prints how far the weights are from those
of one process, what each worker sent, which one is named when it does not come or when its interface is taken down, and
what `--sync-every` saves on a slow network.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "10.99.7"
BRIDGE = "kopt-br"
PLAIN = ["--data", "digits", "--model", "mlp", "--dropout", "0", "--optimizer", "adamw", "--clip-norm", "1"]
PLAIN += ["--track", "none", "--epochs", "2", "--start-timeout", "180"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network(count: int, slow: str = "") -> Iterator[list[str]]:
    """Makes namespaces kopt-0, kopt-1, ..., and returns their addresses; all is removed at the end.

    Args:
        count: how many.
        slow: what `tc` puts in the way of each, as in "netem delay 5ms rate 100mbit".
    """
    names = [f"kopt-{i}" for i in range(count)]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for i, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"kopt-v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"kopt-v{i}", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{PREFIX}.{i + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            if slow:
                command = ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", *slow.split()]
                subprocess.run(command, check=True)
        yield [f"{PREFIX}.{i + 1}:2222" for i in range(count)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


def sent(name: str) -> int:
    """Returns the bytes that the interface of a namespace has sent."""
    done = subprocess.run(["ip", "-n", name, "-s", "-j", "link"], check=True, capture_output=True)
    return next(int(found["stats64"]["tx"]["bytes"]) for found in json.loads(done.stdout) if found["ifname"] == "eth0")


def start(addresses: list[str], index: int, folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts one worker in its namespace."""
    command = ["ip", "netns", "exec", f"kopt-{index}", sys.executable, "-W", "ignore", "-m", "kopt", "mnist", *PLAIN]
    command += ["--output-dir", str(folder), "--distribute", "multiworker", "--workers", ",".join(addresses)]
    command += ["--worker-index", str(index), *flags]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes: list[subprocess.Popen[str]]) -> None:
    """Waits for processes, and prints code and last line of error of each that failed."""
    for i, process in enumerate(processes):
        _, errors = process.communicate()
        last = errors.strip().splitlines()[-1:] if process.returncode else []
        if process.returncode:
            print(f"worker {i}: exit code {process.returncode}: {' '.join(last)}", flush=True)


def weights(folder: Path) -> list[float]:
    import keras
    import numpy as np

    import kopt  # noqa: F401  # Keras asks for the optimizer

    model = keras.models.load_model(folder / "model.keras", compile=False)
    return np.concatenate([np.ravel(w) for w in model.get_weights()]).tolist()


def trained(addresses: list[str], folder: Path, *flags: str) -> tuple[list[int], float]:
    """Trains by all workers; returns the bytes that each has sent, and the seconds of the training."""
    before = [sent(f"kopt-{i}") for i in range(len(addresses))]
    ended([start(addresses, i, folder, *flags) for i in range(len(addresses))])
    seconds = json.loads((folder / "metrics.json").read_text())["train_seconds"]
    return [sent(f"kopt-{i}") - b for i, b in enumerate(before)], seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slow", default="netem delay 5ms rate 100mbit")
    parser.add_argument("--only", choices=["same", "missing", "down", "slow"], help="one of the parts")
    given = parser.parse_args()
    parts = [given.only] if given.only else ["same", "missing", "down", "slow"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "same" in parts:
            import numpy as np

            command = [sys.executable, "-W", "ignore", "-m", "kopt", "mnist", *PLAIN, "--output-dir", f"{folder}/one"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with network(given.workers) as addresses:
                bytes_sent, _ = trained(addresses, folder / "several")
            off = np.abs(np.subtract(weights(folder / "one"), weights(folder / "several"))).max()
            print(f"{given.workers} workers beside one process: largest difference of a weight {off:.1e}")
            print(f"bytes sent by each: {', '.join(f'{x:,}' for x in bytes_sent)}", flush=True)
        if "missing" in parts:
            with network(given.workers) as addresses:
                ended(
                    [start(addresses, i, folder / "missing", "--start-timeout", "60") for i in range(given.workers - 1)]
                )
        if "down" in parts:
            with network(given.workers) as addresses:
                flags = ["--epochs", "1000", "--save-every", "5s"]
                processes = [start(addresses, i, folder / "down", *flags) for i in range(given.workers)]
                while not list((folder / "down").glob("checkpoints/0*")) and processes[0].poll() is None:
                    time.sleep(0.2)
                ip("-n", f"kopt-{given.workers - 1}", "link", "set", "eth0", "down")
                began = time.monotonic()
                ended(processes)
                print(f"ended {time.monotonic() - began:.0f} s after the interface was taken down", flush=True)
        if "slow" in parts:
            print(f"| {given.slow} | bytes a worker | seconds |\n|---|---|---|")
            with network(given.workers, given.slow) as addresses:
                for every in (None, 4, 16):
                    flags = [] if every is None else ["--sync-every", str(every)]
                    bytes_sent, seconds = trained(addresses, folder / f"slow-{every}", *flags)
                    name = "every gradient" if every is None else f"--sync-every {every}"
                    print(f"| {name} | {max(bytes_sent):,} | {seconds:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
