"""What `kopt.recommend` gives without tuning, against the best of ten rules that are tuned.

    python -m benchmarks.recommend [--development] [--tasks NAME ...] [--found recommend.jsonl [--again]] [--write]

The tasks, in recommend_tasks.py, were written when the table of kopt/advice/situations.py was committed; it has not
changed since. `--development` takes the ten tasks that it was improved by instead. Each of ten rules has five trials
of its learning rate, from a log-uniform space of three decades around its default, at the same quantiles for all, as in
`kopt compare`. The target is the test loss at which the best trial of AdamW has done 95 % of the fall that it does in
three quarters of the budget. The three rules that need the fewest steps to it, each at its best rate, are run with
three further seeds: other first weights, another order of the examples. What `recommend` gives is run with these seeds
alone, and AdamW with its defaults beside. Seconds are steps times the time of a step, for which these five take turns
in one process. A figure is the median of the seeds, `inf` where most of them do not come to the target.

`--found` keeps each task that is done: the same command goes on there. `--again` keeps what stands in that file of the
tuned rules and of AdamW, and runs only what `recommend` gives now; all times are taken again. `--write` puts the table
into benchmarks/README.md.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import _turns
from benchmarks.recommend_tasks import DEVELOPMENT, JUDGING
from recipes.compare import protocol
from recipes.compare.tasks import Task
from recipes.compare.training import rate_of

RULES = ("adamw", "nadamw", "adan", "adabelief", "lion", "rmsprop", "adagrad", "momentum", "muon", "soap")
TRIALS, SPAN, SEEDS = 5, 1000.0, (1, 2, 3)
EVALUATIONS, FINALISTS, ROUNDS = 20, 3, 3
FALL, AIM = 0.95, 1.25
Found = dict[str, Any]


class Contestant:
    """A model compiled with an optimizer, which starts anew for each run: so it is traced once."""

    def __init__(self, task: Task, optimizer: Any) -> None:
        self.task, self.model = task, task.model()
        self.model.compile(optimizer, task.loss, steps_per_execution=task.steps // EVALUATIONS)
        optimizer.build(self.model.trainable_variables)

    def run(self, seed: int, rate: float | None = None) -> list[tuple[float, float]]:
        """Returns step and test loss at each evaluation; it ends where the loss is not finite.

        Args:
            seed: of the first weights and of the order of the examples.
            rate: constant learning rate; `None` leaves that of the optimizer.
        """
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.task.model().get_weights())
        self.model.optimizer.reset()
        if rate is not None:
            self.model.optimizer.learning_rate = rate
        evaluations = Evaluations(self.task)
        self.fit(seed, EVALUATIONS, evaluations)
        return evaluations.curve

    def milliseconds(self) -> float:
        """Returns those of a step of training: the least of a few parts of a run."""
        evaluations = Evaluations(None)
        self.fit(0, 6, evaluations)
        return min(evaluations.seconds) * 1e3 / (self.task.steps // EVALUATIONS)

    def fit(self, seed: int, parts: int, callback: keras.callbacks.Callback) -> None:
        """Trains for some parts of the budget."""
        data = tf.data.Dataset.from_tensor_slices(batches(self.task, seed))
        steps = self.task.steps // EVALUATIONS
        self.model.fit(data, epochs=parts, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[callback])


class Evaluations(keras.callbacks.Callback):
    """Notes the loss on the test set after each part of a run, and how long the part took."""

    def __init__(self, task: Task | None) -> None:
        super().__init__()
        self.task, self.curve, self.seconds = task, list[tuple[float, float]](), list[float]()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        if self.task is not None and not self.curve:
            self.look(0)
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes time and loss."""
        self.seconds.append(time.perf_counter() - self._begun)
        if self.task is not None:
            self.look((epoch + 1) * (self.task.steps // EVALUATIONS))

    def look(self, step: int) -> None:
        """Notes the loss on the test set."""
        assert self.task is not None
        x, y = self.task.test
        loss = float(self.model.compute_loss(x, y, self.model(x, training=False), training=False))
        self.curve.append((float(step), loss))
        if not math.isfinite(loss):
            self.model.stop_training = True


def batches(task: Task, seed: int) -> Any:
    """Returns the batches of a run, one behind the other, each epoch in an order of its own."""
    (x, y), rng = task.train, np.random.default_rng(seed)
    per_epoch = len(y) // task.batch_size
    orders = [rng.permutation(len(y))[: per_epoch * task.batch_size] for _ in range(-(-task.steps // per_epoch))]
    rows = np.concatenate(orders).reshape(-1, task.batch_size)[: task.steps]
    return keras.tree.map_structure(lambda part: part[rows], (x, y))


def best_within(curve: Sequence[tuple[float, float]], share: float, steps: int) -> float:
    """Returns the least loss in a share of the steps."""
    return min((value for step, value in curve if step <= share * steps and math.isfinite(value)), default=math.inf)


def recommended(task: Task) -> Any:
    """Returns what `recommend` says about a task: its model, its batch, its data and its budget, no more."""
    per_epoch = len(task.train[1]) // task.batch_size  # as in `batches`: what is left of an epoch is not read
    model = task.model()
    model.compile("sgd", task.loss)
    size = per_epoch * task.batch_size
    return kopt.recommend(model, batch_size=task.batch_size, dataset_size=size, budget=task.steps / per_epoch)


def measure(name: str) -> Found:
    """Returns steps and milliseconds of all contestants on a task."""
    keras.backend.clear_session()
    task = (DEVELOPMENT | JUDGING)[name]()
    contestants = {rule: Contestant(task, kopt.get(rule)) for rule in RULES}
    advice = recommended(task)
    contestants |= _untuned(task, advice)
    rates = {rule: [_rate(rule, place) for (place,) in protocol.places(TRIALS)] for rule in RULES}
    trials = {rule: {rate: contestants[rule].run(0, rate) for rate in rates[rule]} for rule in RULES}
    champion = min(trials["adamw"].values(), key=lambda curve: best_within(curve, 0.75, task.steps))
    target = champion[0][1] - FALL * (champion[0][1] - best_within(champion, 0.75, task.steps))
    found: Found = {"task": name, "about": task.about, "target": target, "code": advice.code, "rates": {}, "steps": {}}
    score = {
        rule: min(
            (protocol.steps_to(target, curve), protocol.last(curve), rate) for rate, curve in trials[rule].items()
        )
        for rule in RULES
    }
    print(f"{name}: { ({rule: [float(f'{x:.3g}') for x in best] for rule, best in score.items()}) }", flush=True)
    final = sorted(RULES, key=score.__getitem__)[:FINALISTS]
    for rule in (*final, "recommend", "default"):
        rate = found["rates"][rule] = score[rule][-1] if rule in score else None
        found["steps"][rule] = _steps(name, rule, contestants[rule], target, rate)
    return found | {"milliseconds": _milliseconds({rule: contestants[rule] for rule in found["steps"]})}


def measure_again(found: Found) -> Found:
    """Returns what was found, but with what `recommend` gives now; the times of all are taken again, in turns."""
    keras.backend.clear_session()
    task = (DEVELOPMENT | JUDGING)[found["task"]]()
    advice = recommended(task)
    contestants = {rule: Contestant(task, kopt.get(rule)) for rule in found["steps"] if rule in RULES}
    contestants |= _untuned(task, advice)
    steps = _steps(found["task"], "recommend", contestants["recommend"], found["target"], None)
    changed = {"steps": found["steps"] | {"recommend": steps}, "milliseconds": _milliseconds(contestants)}
    return found | {"code": advice.code} | changed


def _untuned(task: Task, advice: Any) -> dict[str, Contestant]:
    return {"recommend": Contestant(task, advice.optimizer), "default": Contestant(task, kopt.AdamW())}


def _steps(name: str, rule: str, contestant: Contestant, target: float, rate: float | None) -> float:
    """Returns the median of the steps to the target."""
    steps = statistics.median(protocol.steps_to(target, contestant.run(seed, rate)) for seed in SEEDS)
    print(f"{name}: {rule} {steps:.0f} steps", flush=True)
    return steps


def _milliseconds(contestants: dict[str, Contestant]) -> dict[str, float]:
    times = _turns.take_turns({rule: contestant.milliseconds for rule, contestant in contestants.items()}, ROUNDS)
    return {rule: statistics.median(t) for rule, t in times.items()}


def _rate(rule: str, place: float) -> float:
    middle, root = rate_of(rule), SPAN**0.5
    return protocol.log_uniform(middle / root, middle * root, place)


def regrets(found: Found) -> dict[str, float]:
    """Returns how many times the steps, and the seconds, of the best tuned rule the others need."""
    steps = found["steps"]
    seconds = {rule: steps[rule] * found["milliseconds"][rule] for rule in steps}
    return {
        f"{rule} {unit}": needed[rule] / min(needed[tuned] for tuned in RULES if tuned in needed)
        for rule in ("recommend", "default")
        for unit, needed in (("steps", steps), ("seconds", seconds))
    }


def table(results: Sequence[Found], tasks: Sequence[str]) -> list[str]:
    """Returns a row a task, and the medians; it says which of the tasks are not there."""
    lines = [
        "| task | recommended | its steps | best tuned rule | its steps | steps, × the best | time, × the best "
        "| AdamW's default, steps | time |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    columns = ("recommend steps", "recommend seconds", "default steps", "default seconds")
    for found in results:
        steps, regret = found["steps"], regrets(found)
        best = min((rule for rule in RULES if rule in steps), key=steps.__getitem__)
        cells = [found["about"], f"`{found['code']}`", f"{steps['recommend']:.0f}"]
        cells += [f"`{best}` at {found['rates'][best]:.2g}", f"{steps[best]:.0f}"]
        lines.append("| " + " | ".join([*cells, *(f"{regret[c]:.2f}" for c in columns)]) + " |")
    medians = [statistics.median(regrets(found)[c] for found in results) for c in columns]
    lines.append("| median | | | | | " + " | ".join(f"**{m:.2f}**" for m in medians) + " |")
    missing = ", ".join(name for name in tasks if name not in {found["task"] for found in results})
    left = f"Not measured yet: {missing}. " if missing else ""
    lines += ["", f"{left}Aim: at most {AIM} in the median; {_turns.machine('Keras', 'TensorFlow')}"]
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--development", action="store_true", help="the tasks that the rules were improved by")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="some of the tasks")
    parser.add_argument("--found", type=Path, help="file of the tasks that are done, to go on with")
    parser.add_argument("--again", action="store_true", help="run what recommend gives now, beside what is in --found")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args(arguments)
    tasks = list(DEVELOPMENT if flags.development else JUDGING)
    chosen = flags.tasks or tasks
    if not set(chosen) <= set(tasks):
        parser.error(f"--tasks takes some of {', '.join(tasks)}. Received: {' '.join(chosen)}")
    if flags.again and (flags.found is None or not flags.found.exists()):
        parser.error(f"--again needs the file of a run before. Received: --found {flags.found}")
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the models are small, and the machine may be busy
    done: dict[str, Found] = {}
    if flags.found is not None and flags.found.exists():
        lines = flags.found.read_text(encoding="utf-8").splitlines()
        done = {found["task"]: found for found in map(json.loads, lines)}
    for name in chosen:
        if name not in done:
            done[name] = measure(name)
            if flags.found is not None:
                with flags.found.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[name]) + "\n")
        elif flags.again:
            done[name] = measure_again(done[name])
    lines = table([done[name] for name in chosen], tasks)
    print("\n".join(lines))
    if flags.write:
        _turns.insert("\n".join(lines), "recommend-development" if flags.development else "recommend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
