"""What the adapters did, in TensorBoard."""

import dataclasses
from typing import Annotated, Any

import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Count
from kopt.declare.keras_bases import KerasCallback
from kopt.peft.host import AdapterLayer, as_float32
from kopt.peft.model import adapter_layers
from kopt.tensorboard.event_file import EventFile, as_folder, check_tensorboard
from kopt.tensorboard.points import Log, period
from kopt.training.keras_internals import count_batches, innermost


class AdapterStats(Configurable, KerasCallback):
    """Writes how large the active adapters are in `fit`, and how far they change the base, to TensorBoard.

    The step axis counts updates (`optimizer.iterations`). There is a point at the start, after every `every`-th update
    and at the end of each epoch. Of an adapter called "default":

    - `adapter/default/norm`: ‖p‖ of all that it trains; `layer/<path>/default_norm` of each layer's part;
    - `adapter/default/delta_to_base`: ‖ΔW‖ / ‖W‖ of all weights of the base that it changes, where ΔW is the effective
      weight less that of the base; `layer/<path>/default_delta_to_base` of each layer. Trained copies, as of biases or
      a head, count as weights that it changes. Methods without an effective weight, as prompts, have norms alone.

    Args:
        log_dir: folder of the run, which may be that of `OptimizerStats`; with None, `log` alone is called.
        every: ≥ 1, updates from one point to the next; None makes about 100 points, as in `OptimizerStats`.
        log: function of the values by name and the step, called with each point.

    Raises:
        ImportError: tensorboard is missing, broken or too old.
        ValueError: `every` is not a positive integer.
    """

    log_dir: Annotated[Any, Convert(as_folder)] = dataclasses.field(kw_only=False)
    every: Count | None = dataclasses.field(default=None, kw_only=False)
    log: Log | None = None

    def __post_init__(self) -> None:
        if self.log_dir is not None:
            check_tensorboard("AdapterStats")

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the event file and writes how training starts."""
        self._hosts = adapter_layers(self.model)
        if not any(layer.active for layer in self._hosts):
            raise ValueError(f"AdapterStats needs a model with an active adapter. Received: {self.model!r}")
        optimizer = innermost(self.model)
        if optimizer is None:
            raise ValueError(f"AdapterStats needs a model compiled with an optimizer. Received: {self.model!r}")
        self._stride = optimizer.gradient_accumulation_steps or 1
        self._file, self._step = EventFile(self.log_dir), -1
        self._point()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Finds out where the count stands."""
        self._offset = self._batches()

    # As in OptimizerStats, on_train_batch_end is left alone: if a callback defines it, Keras waits for every batch.

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks at the batches before, if a point is due."""
        every = self.every or period(self.params, self._stride, self._step)
        if (self._offset + batch) // self._stride >= (self._step // every + 1) * every:
            self._point()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the last batch."""
        self._point()

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the file."""
        self._point()
        self._file.close()

    def _batches(self) -> int:
        return int(ops.convert_to_numpy(count_batches(innermost(self.model))))

    def _point(self) -> None:
        step = self._batches() // self._stride
        if step == self._step:
            return
        self._step = step
        values, sums = dict[str, float](), dict[str, np.ndarray[Any, Any]]()
        for layer in self._hosts:
            for name in layer.active:
                squares = _squares(layer, name)
                sums[name] = sums.get(name, np.zeros(3)) + squares
                values |= _norms(f"layer/{layer.host().path}/{name}_", squares)
        for name, squares in sums.items():
            values |= _norms(f"adapter/{name}/", squares)
        self._file.scalars(values, step)
        if self.log is not None:
            self.log(values, step)


def _norms(prefix: str, squares: np.ndarray[Any, Any]) -> dict[str, float]:
    size, change, base = np.sqrt(squares).tolist()
    return {f"{prefix}norm": size} | ({f"{prefix}delta_to_base": change / base} if base else {})


def _squares(layer: AdapterLayer, name: str) -> np.ndarray[Any, Any]:
    """Returns ‖p‖², ‖ΔW‖² and ‖W‖² of an adapter at one host."""
    adapter, weights, copies = layer.adapters[name], layer.weights_of[name], layer.copies[name]
    learning = [*(v for v in weights.values() if v.trainable), *copies.values()]
    pairs = [(as_float32(copy), as_float32(layer.owned[attr])) for attr, copy in copies.items()]
    for site in layer.sites.values() if adapter.mergeable else ():
        if not layer.weights_at(name, site):
            continue
        base = site.matrix(as_float32(site.variable))
        effective = adapter.effective(ops.convert_to_tensor(base), layer.parameters(name, site, ops.ones(())))
        pairs.append((ops.convert_to_numpy(effective), base))
    return np.array(
        [
            sum(_square(as_float32(v)) for v in learning),
            sum(_square(new - old) for new, old in pairs),
            sum(_square(old) for _, old in pairs),
        ]
    )


def _square(x: Any) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))
