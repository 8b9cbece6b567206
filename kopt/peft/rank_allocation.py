"""AdaLoRA's choice of ranks while training goes on."""

import math
import warnings
from typing import Any

import keras
import numpy as np

from kopt.peft.adapter import Array
from kopt.peft.host import AdapterLayer
from kopt.peft.methods import AdaLoRA
from kopt.peft.methods.adalora import FACTORS
from kopt.peft.model import ModelAdapters, require_adapters


class AllocateRanks(keras.callbacks.Callback):
    r"""Takes ranks of an `AdaLoRA` away where they matter least, for `model.fit(..., callbacks=[AllocateRanks()])`.

        I = |w g|,   Ī ← β₁ Ī + (1-β₁) I,   Ū ← β₂ Ū + (1-β₂) |I - Ī|          for each weight after each step

        score of a rank = Ī Ū of e + mean of Ī Ū over its column of A + mean over its row of B

    After step t the `b` ranks of the highest scores are left, among all kernels, and e = 0 of the others, which may
    come back; in the last `tfinal` steps they do not:

        b = target + (init - target) (1 - (t - tinit) / (total_step - tfinal - tinit))³

    Steps are counted on when `fit` is called again with the same callback; `kopt.checkpoint.Checkpoint` keeps them. A
    step whose gradients are not finite says nothing of importance.

    Args:
        adapter_name: the adapter.

    Raises:
        ValueError: by `fit`: the adapter is no AdaLoRA, or is not trained; gradients are accumulated, or scaled as in
            mixed float16; or several steps are made at once.

    Agrees with Hugging Face peft, whose `update_and_allocate` is called after the optimizer, from step 1.
    Reference: Zhang et al., 2023, arXiv:2303.10512.
    """

    def __init__(self, adapter_name: str = "default") -> None:
        super().__init__()
        self.adapter_name = adapter_name
        self.step = 0
        self._importance: dict[str, Array] = {}
        self._uncertainty: dict[str, Array] = {}
        self._kept: dict[str, Array] = {}
        self._before: dict[str, Array] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Looks at what is trained."""
        model = self.model
        adapter = require_adapters(model).require(self.adapter_name)
        if not isinstance(adapter, AdaLoRA):
            raise ValueError(f"AllocateRanks goes with an AdaLoRA. Received: {adapter!r}")
        current = require_adapters(model)
        if self.adapter_name not in current.active or self.adapter_name in current.fixed:
            raise ValueError(
                f"AllocateRanks looks at gradients, and the adapter {self.adapter_name!r} is not trained: it was "
                "loaded with is_trainable=False, or set_adapter has chosen others."
            )
        optimizer = model.optimizer
        if getattr(optimizer, "gradient_accumulation_steps", None) or model.steps_per_execution > 1:
            raise ValueError(
                "AllocateRanks looks at the gradient of every step: leave out gradient_accumulation_steps and "
                "steps_per_execution."
            )
        if hasattr(optimizer, "inner_optimizer"):
            raise ValueError("AllocateRanks takes no scaled gradients: use mixed_bfloat16, or float32.")
        self._look(self._parts(require_adapters(model))[1])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes how much weights matter, and chooses."""
        current = require_adapters(self.model)
        adapter, layers = self._parts(current)
        self.step += 1
        last = adapter.total_step - adapter.tfinal
        if (self.step < last or not self._importance) and self._finite(layers):
            for path, layer in layers.items():
                self._note(path, layer)
        if not self._importance:  # no step so far had gradients to look at
            return
        if (adapter.tinit < self.step < last and self.step % adapter.deltaT == 0) or self.step == last:
            self._choose(layers, adapter)
        if self.step >= last or (self.step > adapter.tinit and self.step % adapter.deltaT == 0):
            for path, layer in layers.items():
                e = layer.weights_of[self.adapter_name]["lora_E"]
                e.assign(np.where(self._kept[path], e.numpy(), 0))
        self._look(layers)

    def on_train_end(self, logs: Any = None) -> None:
        """Says so if training ended too early."""
        adapter, _ = self._parts(require_adapters(self.model))
        if self.step < adapter.total_step - adapter.tfinal:
            warnings.warn(
                f"AdaLoRA is at step {self.step} of total_step={adapter.total_step}: it has more ranks than target_r. "
                "Let total_step be the number of steps that fit makes, or go on with the same callback.",
                stacklevel=2,
            )

    def _parts(self, current: ModelAdapters) -> tuple[AdaLoRA, dict[str, AdapterLayer]]:
        name = self.adapter_name
        adapter = current.require(name)
        assert isinstance(adapter, AdaLoRA)
        return adapter, {p: layer for p, layer in current.hosts.items() if "lora_E" in layer.weights_of.get(name, {})}

    def _look(self, layers: dict[str, AdapterLayer]) -> None:
        """Keeps the weights that the next gradient is taken at."""
        weights = {path: layer.weights_of[self.adapter_name] for path, layer in layers.items()}
        self._before = {f"{path}.{f}": np.array(own[f].numpy()) for path, own in weights.items() for f in FACTORS}

    def _finite(self, layers: dict[str, AdapterLayer]) -> bool:
        """Returns whether the step had gradients; one that is not finite would take all ranks for good."""
        owned = [layer.weights_of[self.adapter_name] for layer in layers.values()]
        return all(np.isfinite(own[f"{factor}_gradient"].numpy()).all() for own in owned for factor in FACTORS)

    def _note(self, path: str, layer: AdapterLayer) -> None:
        weights, adapter = layer.weights_of[self.adapter_name], layer.adapters[self.adapter_name]
        assert isinstance(adapter, AdaLoRA)
        for factor in FACTORS:
            key, zero = f"{path}.{factor}", np.zeros(weights[factor].shape, "float32")
            gradient = weights[f"{factor}_gradient"].numpy() + adapter.pull(factor, self._before[key])
            now = np.abs(weights[factor].numpy() * gradient)
            mean = adapter.beta1 * self._importance.get(key, zero) + (1 - adapter.beta1) * now
            off = adapter.beta2 * self._uncertainty.get(key, zero) + (1 - adapter.beta2) * np.abs(now - mean)
            self._importance[key], self._uncertainty[key] = mean, off

    def _choose(self, layers: dict[str, AdapterLayer], adapter: AdaLoRA) -> None:
        scores = {path: self._scores(path, layer) for path, layer in layers.items()}
        flat = np.concatenate([score.ravel() for score in scores.values()])
        most, least = flat.size, adapter.target_r * flat.size // adapter.init_r
        span = adapter.total_step - adapter.tfinal - adapter.tinit
        budget = int((most - least) * (1 - (self.step - adapter.tinit) / span) ** 3 + least)
        bound = np.sort(flat)[most - budget - 1] if budget < most else -math.inf
        self._kept = {path: (score > bound)[..., None, :] for path, score in scores.items()}

    def _scores(self, path: str, layer: AdapterLayer) -> Array:
        a, e, b = (self._importance[f"{path}.{f}"] * self._uncertainty[f"{path}.{f}"] for f in FACTORS)
        return np.asarray(e[..., 0, :] + (a.mean(axis=-2) + b.mean(axis=-1)))
