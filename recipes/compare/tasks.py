"""The tasks: a model, its data, and the target."""

import functools
import importlib.util
import math
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..readers import packaged
from ..readers.digits import load as load_digits
from ..run.batches import Array
from ..run.errors import DataError, UsageError
from . import descriptions
from .functions import FUNCTIONS


class Task(NamedTuple):
    """What all optimizers train."""

    about: str
    """Data and model in a few words."""
    model: Callable[[], Any]
    """Makes the Keras model, not compiled."""
    loss: Any
    """As `compile` takes it."""
    train: tuple[Any, Any]
    """Inputs, arrays with a row an example, and targets."""
    test: tuple[Any, Any]
    """Those that the optimizers are judged by."""
    batch_size: int
    steps: int
    target: float | None = None
    """The value of the metric to reach; `None` takes what the first optimizer ends with."""
    metric: str = "loss"
    """loss, which is to be small, or accuracy, which is to be large."""

    @property
    def sign(self) -> int:
        """Returns -1 if the metric is to be large."""
        return -1 if self.metric == "accuracy" else 1

    @property
    def size(self) -> int:
        """Returns the number of examples to train with."""
        import keras

        return len(keras.tree.flatten(self.train[1])[0])


REQUIRED = ("model", "loss", "train", "test")


def _classes() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _dense(shape: tuple[int, ...], hidden: list[int], outputs: int) -> Callable[[], Any]:
    def make() -> Any:
        import keras
        from keras import layers

        body = [layers.Dense(width, activation="relu") for width in hidden]
        return keras.Sequential([keras.Input(shape), layers.Flatten(), *body, layers.Dense(outputs)])

    return make


def _images(data: str, batch_size: int, steps: int, target: float) -> Task:
    found = load_digits(data)
    x_train, x_test = (x.astype("float32") / 255 for x in (found.x_train, found.x_test))
    return Task(
        f"{len(x_train):,} images of {found.source}, dense model 784-256-10",
        _dense((28, 28), [256], 10),
        _classes(),
        (x_train, found.y_train),
        (x_test, found.y_test),
        batch_size,
        steps,
        target,
        "accuracy",
    )


def mnist(data: str) -> Task:
    """Returns the digits of MNIST, or what --data names."""
    return _images(data, 128, 1500, 0.97)


def digits(data: str) -> Task:
    """Returns the small digits of scikit-learn."""
    return _images("digits", 64, 300, 0.97)


def tabular(data: str) -> Task:
    """Returns a regression of ten columns, of which five matter, by Friedman's first function."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(5000, noise=0.5, random_state=0)
    x, y = x.astype("float32") - 0.5, ((y - y.mean()) / y.std()).astype("float32")[:, None]
    model = _dense((10,), [64, 64], 1)
    about = "4,000 rows of Friedman's first function, dense model 10-64-64-1"
    return Task(about, model, "mse", (x[:4000], y[:4000]), (x[4000:], y[4000:]), 64, 500, 0.03)


def sources() -> dict[str, bytes]:
    """Returns the modules of Python's standard library by name, in alphabetical order."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return {path.stem: path.read_bytes() for path in files}


def text(data: str) -> Task:
    """Returns lines of code, each to be assigned to its module, by the mean of embedded words."""
    import zlib

    large = sorted(sources().items(), key=lambda item: -len(item[1]))[:8]
    buckets, width, rows, labels = 5000, 12, list[Array](), list[int]()
    for label, (_, code) in enumerate(sorted(large)):
        for line in code.splitlines():
            words = line.split()[:width]
            if len(words) >= 3:
                row = [1 + zlib.crc32(word) % buckets for word in words]
                rows.append(np.array(row + [0] * (width - len(row)), "int32"))
                labels.append(label)
    order = np.random.default_rng(0).permutation(len(rows))
    x, y = np.stack(rows)[order], np.array(labels)[order]

    def make() -> Any:
        import keras
        from keras import layers

        words = keras.Input((width,), dtype="int32")
        mean = layers.GlobalAveragePooling1D()(layers.Embedding(buckets + 1, 32, mask_zero=True)(words))
        return keras.Model(words, layers.Dense(8)(layers.Dense(32, activation="relu")(mean)))

    held = len(x) // 5
    about = f"{len(x) - held:,} lines of eight modules of Python's standard library, mean of embedded words"
    parts = (x[held:], y[held:]), (x[:held], y[:held])
    return Task(about, make, _classes(), *parts, 64, 600, 0.6, "accuracy")


def recommendation(data: str) -> Task:
    """Returns ratings of films, MovieLens 100K where recbole is installed, else synthetic ones."""
    found = packaged.find("recbole", "recbole/dataset_example/ml-100k/ml-100k.inter")
    rng = np.random.default_rng(0)
    if found is not None:
        table = np.loadtxt(found.path, skiprows=1, usecols=(0, 1, 2))
        pairs, y, about = table[:, :2].astype("int32"), table[:, 2], f"MovieLens 100K in {found}"
    else:
        pairs = np.stack([rng.integers(500, size=50_000), rng.integers(300, size=50_000)], axis=1).astype("int32")
        factors = [rng.normal(size=(n, 4)) for n in (500, 300)]
        products = (factors[0][pairs[:, 0]] * factors[1][pairs[:, 1]]).sum(axis=1)
        y, about = products / 2 + 0.5 * rng.normal(size=len(pairs)), "50,000 synthetic ratings"
    order, sizes = rng.permutation(len(pairs)), pairs.max(axis=0) + 1
    pairs, y = pairs[order], (y - y.mean())[order].astype("float32")[:, None]

    def make() -> Any:
        import keras
        from keras import layers

        pair, parts = keras.Input((2,), dtype="int32"), list[Any]()
        for i in range(2):
            parts.append([layers.Embedding(int(sizes[i]), dim)(pair[:, i]) for dim in (16, 1)])
        product = layers.Dot(axes=1)([parts[0][0], parts[1][0]])
        return keras.Model(pair, layers.Add()([product, parts[0][1], parts[1][1]]))

    held = len(y) // 10
    sets = (pairs[held:], y[held:]), (pairs[:held], y[:held])
    return Task(f"{about}, matrix factorization", make, "mse", *sets, 512, 600)


def language_model(data: str) -> Task:
    """Returns bytes of Python's standard library, each to be predicted from those before it."""
    from .decoder import decoder

    code = np.frombuffer(b"".join(sources().values())[:500_000], "uint8")
    rows = code[: len(code) // 33 * 33].reshape(-1, 33).astype("int32")
    held = np.arange(len(rows)) % 40 == 0
    train, test = ((part[:, :-1], part[:, 1:]) for part in (rows[~held], rows[held]))
    about = "500,000 bytes of Python's standard library, decoder of two layers with attention"
    return Task(about, lambda: decoder(32, 64, 2, 2), _classes(), train, test, 32, 500)


def multimodal(data: str) -> Task:
    """Returns noisy images of the small digits, each with a sentence that tells one fact of the digit."""
    found = load_digits("digits")
    sets = [
        (descriptions.pairs(x[:, ::2, ::2].astype("float32") / 255, y, seed), y)  # there are 8 x 8 pixels behind them
        for seed, x, y in ((0, found.x_train, found.y_train), (1, found.x_test, found.y_test))
    ]
    about = f"{len(found.x_train):,} noisy images and descriptions of {found.source}, a tower for each"
    make = functools.partial(descriptions.two_towers, found.x_train.shape[1] // 2)
    return Task(about, make, _classes(), sets[0], sets[1], 64, 400, 0.88, "accuracy")


TASKS: Mapping[str, Callable[[str], Task]] = {
    "mnist": mnist,
    "digits": digits,
    "text": text,
    "recommendation": recommendation,
    "language-model": language_model,
    "tabular": tabular,
    "multimodal": multimodal,
}
OF_FUNCTIONS = "test-functions"


def check_name(name: str) -> None:
    """Checks `--task`.

    Raises:
        UsageError: there is no such task.
    """
    file, colon, function = name.rpartition(":")
    if name not in (*TASKS, OF_FUNCTIONS) and not (colon and file.endswith(".py") and function.isidentifier()):
        known = ", ".join((*TASKS, OF_FUNCTIONS))
        raise UsageError(f"--task {name}: unknown. Give one of {known}, or FILE.py:FUNCTION.")


@functools.cache
def load(name: str, data: str) -> Task:
    """Returns a task.

    Args:
        name: as of --task.
        data: as of --data.

    Raises:
        UsageError: the file has no such function, or it does not return what it should.
        DataError: the data are not there.
    """
    if name == OF_FUNCTIONS:
        about = f"{len(FUNCTIONS)} functions of two variables"
        return Task(about, lambda: None, None, (None, None), (None, None), 1, 500, -2.0)
    return TASKS[name](data) if name in TASKS else _of_file(name)


def _of_file(name: str) -> Task:
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("task_of_a_comparison", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for classes that Keras registers
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise DataError(f"--task {name}: {error.strerror}.") from error
    if not callable(make := getattr(module, function, None)):
        raise UsageError(f"--task {name}: {path} has no function {function}.")
    found = make()
    optional = {"batch_size", "steps", "target", "metric", "about"}
    if not isinstance(found, Mapping) or not set(REQUIRED) <= set(found) <= {*REQUIRED, *optional}:
        keys = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise UsageError(
            f"--task {name}: {function}() must return a dictionary with {', '.join(REQUIRED)}, and perhaps "
            f"{', '.join(sorted(optional))}. Received: {keys}"
        )
    if found.get("metric", "loss") not in ("loss", "accuracy"):
        raise UsageError(f"--task {name}: metric must be loss or accuracy. Received: {found['metric']!r}")
    return _checked(name, Task(**{"about": function, "batch_size": 32, "steps": 500, **found}))


def _checked(name: str, task: Task) -> Task:
    """Returns a task with arrays for data frames and tensors.

    Raises:
        UsageError: a value is none that a task can have.
        DataError: there are no examples, or not as many inputs as targets.
    """
    import keras

    if isinstance(task.model, keras.Model) or not callable(task.model):
        raise UsageError(f"--task {name}: model must be a function that makes the model. Received: {task.model!r}")
    for key in ("batch_size", "steps"):
        value = getattr(task, key)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"--task {name}: {key} must be a whole number of at least 1. Received: {value!r}")
    if task.target is not None and not (isinstance(task.target, (int, float)) and math.isfinite(task.target)):
        raise UsageError(f"--task {name}: target must be a finite number. Received: {task.target!r}")
    return task._replace(train=_examples(name, "train", task.train), test=_examples(name, "test", task.test))


def _examples(name: str, key: str, pair: Any) -> Any:
    import keras

    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UsageError(f"--task {name}: {key} must be a pair of inputs and targets. Received: {type(pair).__name__}")
    arrays = keras.tree.map_structure(np.asarray, tuple(pair))
    shapes = [array.shape for array in keras.tree.flatten(arrays)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or rows & {(), (0,)}:
        told = ", ".join(map(str, shapes[:6]))
        raise DataError(f"--task {name}: {key} must be arrays with a row an example, one or more. Shapes: {told}")
    return arrays
