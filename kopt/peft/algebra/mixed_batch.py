"""Batches whose rows have different adapters."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from typing_extensions import override

from kopt.peft.host import rows
from kopt.peft.layers import exchange_functions
from kopt.peft.model import require_adapters

BASE = "__base__"
"""The name that stands for no adapter."""


class MixedBatch(keras.Model):
    """A model that predicts batches whose rows have different adapters of another model.

    The base is computed once for all rows, and each adapter adds to its own. Values of adapters can be exchanged, by
    `load_adapter` under the same name or `set_adapter_state`, without a new trace. Which adapters are active there does
    not matter; none may be merged.

    Args:
        model: a model with adapters, none of which is a prompt or trains copies of weights. The first axis of what its
            layers take must be the rows of the batch.

    Raises:
        ValueError: it has no adapters, or one that rows cannot have.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(name=f"{model.name}_mixed")
        current = require_adapters(model)
        for name, adapter in current.adapters.items():
            copied = any(layer.copies.get(name) for layer in current.hosts.values())
            if copied or not adapter.gated:
                raise ValueError(
                    f"Rows cannot have the adapter {name!r}, which "
                    f"{'trains copies of weights of the base' if copied else 'is in front of all tokens'}."
                )
        self.inner = model
        self.names: list[str] = list(current.adapters)
        self._traced: list[Any] = list(current.adapters.values())

    @override
    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of {"inputs": what the model takes, "shares": [rows, adapters]}."""
        with rows(inputs["shares"], self.names):
            return self.inner(inputs["inputs"], training=training)

    def predict_rows(self, x: Any, adapter_names: Sequence[str], **options: Any) -> Any:
        """Returns what the model predicts for each row with its own adapter.

        Args:
            x: what the model takes, as arrays.
            adapter_names: name of the adapter of each row; "__base__" is none. The scales of `set_scale` hold.
            **options: those of `predict`, as batch_size.

        Raises:
            ValueError: a name is unknown, their number is not that of the rows, or adapters are merged.
        """
        current = require_adapters(self.inner)
        if current.merged:
            raise ValueError("Adapters are merged. Call unmerge_adapter(model) first.")
        if [id(a) for a in self._traced] != [id(a) for a in current.adapters.values()]:
            self.names, self._traced = list(current.adapters), list(current.adapters.values())
            exchange_functions(self, {})
        if unknown := [name for name in adapter_names if name != BASE and name not in current.adapters]:
            current.require(unknown[0])
        count = len(keras.tree.flatten(x)[0])
        if len(adapter_names) != count:
            raise ValueError(f"There are {count} rows, but {len(adapter_names)} names of adapters.")
        shares = np.zeros((count, len(self.names)), "float32")
        for row, name in enumerate(adapter_names):
            if name != BASE:
                shares[row, self.names.index(name)] = current.scales.get(name, 1.0)
        return self.predict({"inputs": x, "shares": shares}, **({"verbose": 0} | options))
