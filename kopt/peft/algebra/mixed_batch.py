"""Batches whose rows have different adapters."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from typing_extensions import override

from kopt.peft.host import rows
from kopt.peft.layers import exchange_functions
from kopt.peft.model import ModelAdapters, require_adapters
from kopt.peft.requirements import BASE


class MixedBatch(keras.Model):
    """A model that predicts batches whose rows have different adapters of another model.

    The base is computed once for all rows, and each adapter adds to its own. Values of adapters can be exchanged, by
    `load_adapter` under the same name or `set_adapter_state`, without a new trace. Which adapters are active there does
    not matter, also within `disable_adapter`; none may be merged.

    It is not saved: save the model, and make a `MixedBatch` of what is loaded. `export` writes it as it is, with the
    inputs {"inputs": what the model takes, "shares": [rows, adapters], 1 where a row has an adapter and else 0}.

    Args:
        model: a model with adapters, none of which is a prompt or trains copies of weights. The first axis of what its
            layers take must be the rows of the batch.

    Raises:
        ValueError: it has no adapters, or one that rows cannot have.
    """

    def __init__(self, model: Any) -> None:
        current = require_adapters(model)
        super().__init__(name=f"{model.name}_mixed", autocast=False)  # shares stay float32; `model` casts what it takes
        self.inner = model
        self.names: list[str] = []
        self._traced: list[Any] = []
        self._follow(current)

    def _follow(self, current: ModelAdapters) -> None:
        """Takes the adapters that the model has now."""
        if [id(a) for a in self._traced] == [id(a) for a in current.adapters.values()]:
            return
        for name, adapter in current.adapters.items():
            copied = any(layer.copies.get(name) for layer in current.hosts.values())
            if copied or not adapter.gated:
                raise ValueError(
                    f"Rows cannot have the adapter {name!r}, which "
                    f"{'trains copies of weights of the base' if copied else 'is in front of all tokens'}."
                )
        self.names, self._traced = list(current.adapters), list(current.adapters.values())
        exchange_functions(self, {})

    @override
    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of {"inputs": what the model takes, "shares": [rows, adapters]}."""
        if not isinstance(inputs, dict) or inputs.keys() != {"inputs", "shares"}:
            raise ValueError(
                "MixedBatch takes {'inputs': ..., 'shares': ...}. Call predict_rows(x, adapter_names), which makes it."
            )
        with rows(inputs["shares"], self.names):
            return self.inner(inputs["inputs"], training=training)

    @override
    def get_config(self) -> dict[str, Any]:
        raise ValueError(
            "A MixedBatch is not saved. Save the model that has the adapters (its `inner`), and make MixedBatch(model) "
            "of what is loaded."
        )

    def predict_rows(self, x: Any, adapter_names: Sequence[str], **options: Any) -> Any:
        """Returns what the model predicts for each row with its own adapter.

        Args:
            x: what the model takes, as arrays.
            adapter_names: name of the adapter of each row; "__base__" is none. The scales of `set_scale` hold.
            **options: those of `predict`, as batch_size.

        Raises:
            ValueError: a name is unknown, their number is not that of the rows, there are no rows, adapters are merged,
                or the model has got one that rows cannot have.
        """
        current = require_adapters(self.inner)
        if current.merged:
            raise ValueError("Adapters are merged. Call unmerge_adapter(model) first.")
        self._follow(current)
        if not isinstance(adapter_names, (list, tuple, np.ndarray)):
            raise ValueError(f"adapter_names must be a list with a name for each row. Received: {adapter_names!r}")
        for name in adapter_names:
            if not isinstance(name, str) or name != BASE:
                current.require(name)
        count = _count_rows(x)
        if count != len(adapter_names):
            raise ValueError(f"There are {count} rows, but {len(adapter_names)} names of adapters.")
        shares = np.zeros((count, len(self.names)), "float32")
        for row, name in enumerate(adapter_names):
            if name != BASE:
                shares[row, self.names.index(name)] = current.scales.get(name, 1.0)
        return self.predict({"inputs": x, "shares": shares}, **({"verbose": 0} | options))


def _count_rows(x: Any) -> int:
    """Returns the number of rows of arrays, or raises ValueError."""
    parts = keras.tree.flatten(x)
    counts = {int(part.shape[0]) if getattr(part, "shape", ()) else 0 for part in parts}
    if len(counts) != 1 or 0 in counts:
        received = ", ".join(f"{type(part).__name__} {tuple(getattr(part, 'shape', ()))}" for part in parts[:5])
        raise ValueError(f"x must be arrays with the same number of rows, at least one. Received: {received}")
    return counts.pop()
