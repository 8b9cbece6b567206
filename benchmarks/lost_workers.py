"""How long the others train on when one worker is gone, and what they say.

    sudo python -m benchmarks.lost_workers [--workers 4]     # in network namespaces: Linux, as root

Trains the recipe `mnist` by several workers, each on a host of its own, and then kills one of them, cuts its cable, or
never starts it. Prints how long it took until every other one had ended, their exit codes and what the first one said.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _hosts
from benchmarks.same_result import KOPT

TRAINING = "mnist --data digits --model mlp --epochs 100000 --save-every 20s --track none --progress none"
HOW = ["SIGKILL", "cable cut", "never started"]
START, LONGEST = 20, 120
"""Seconds in which all must have come, and until a worker that does not end is killed."""


def lose(how: str, workers: int, folder: Path) -> tuple[float, list[int], str]:
    """Trains until the last worker is gone; returns seconds until the others have ended, their codes and a line."""
    run = folder / "run"
    with _hosts.network(workers) as hosts, contextlib.ExitStack() as stack:
        together = ["--distribute", "multiworker", "--workers", _hosts.addresses(hosts), "--output-dir", str(run)]
        processes = []
        for i, host in enumerate(hosts[: workers - (how == "never started")]):
            place = [*together, "--worker-index", str(i), "--start-timeout", str(START)]
            says = stack.enter_context((folder / f"{i}.txt").open("w", encoding="utf-8"))
            command = host.command(*KOPT, *TRAINING.split(), *place)
            processes.append(subprocess.Popen(command, stdout=says, stderr=says))
            stack.callback(processes[-1].kill)
        began = time.monotonic()
        if how != "never started":
            while not any((run / "checkpoints").glob("*/*")):
                if any(process.poll() is not None for process in processes):
                    raise SystemExit((folder / "0.txt").read_text(encoding="utf-8"))
                time.sleep(0.1)
            began = time.monotonic()
            if how == "SIGKILL":
                processes.pop().send_signal(signal.SIGKILL)
            else:
                hosts[-1].cut()
        codes = [process.wait(max(1.0, began + LONGEST - time.monotonic())) for process in processes]
        seconds = time.monotonic() - began
    errors = [line for line in (folder / "0.txt").read_text(encoding="utf-8").splitlines() if "error" in line]
    return seconds, codes, errors[-1] if errors else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--how", nargs="+", choices=HOW, default=HOW)
    given = parser.parse_args()
    print("| the last worker | seconds | exit codes of the others | worker 0 says |\n|---|---:|---|---|")
    for how in given.how:
        with tempfile.TemporaryDirectory() as folder:
            seconds, codes, line = lose(how, given.workers, Path(folder))
        print(f"| {how} | {seconds:.1f} | {' '.join(map(str, codes))} | {line} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
