"""What users do with the adapters of a model: add, switch, merge and remove them, in any order.

What holds after each of them is said in `adapters.py`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kopt.peft.adapter import Adapter
from kopt.peft.model.adapters import disabled, require_adapters
from kopt.peft.model.model_class import add_adapter


def get_peft_model(model: Any, adapter: Adapter, adapter_name: str = "default") -> Any:
    """Adds an adapter to a model, in place, and makes it the active one.

    The base is frozen: only the adapter is trained. Layers keep their names and weights; `fit`, `predict`, `save` and
    functional calls work as before. A model may have several adapters of different methods.

    `trainable = True` on the model, or on a layer that has adapters or contains layers with adapters, thaws these
    adapters and nothing of the base. On any other layer it is taken at its word: that layer is then trained as well.

    Args:
        model: a built Keras model of any kind.
        adapter: the method, as `LoRA(r=8)`.
        adapter_name: its name in this model: letters, digits, _ and -.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: the model is not built, the name is taken, the adapter matches no layer that can host it, layers
            have adapters of another model, or the adapter starts from data. The model is then as before.
    """
    if getattr(adapter, "from_data", False) is True:
        raise ValueError(
            f"{adapter!r} starts from data: call kopt.peft.initialize(model, adapter, batches) instead of "
            "get_peft_model(model, adapter)."
        )
    add_adapter(model, adapter, adapter_name).choose([adapter_name])
    return model


def set_adapter(model: Any, adapter_names: str | Sequence[str]) -> None:
    """Makes one adapter, or several at once, the active ones: those that are used and trained.

    Several are applied in the order in which they were added to the model. A merged adapter that is not among them is
    unmerged. Inside of a block of `disable_adapter` the choice holds after the block.

    The state of an optimizer belongs to the weights that it was made for. If other weights are trained than before, a
    compiled model gets another optimizer: that which trained these weights before, with its moments, counters and
    learning rate, or a new one of the same configuration, with the learning rate as it stands. The others wait, in
    memory, until `compile` is called or an adapter of theirs is deleted. Weights that were excluded from decay as
    variables are excluded for their own set alone; patterns hold for all. `model.save` and pickles keep the current
    optimizer only. A compiled model around this one does not know of the choice: compile it again before its `fit`.

    Raises:
        ValueError: the model has no such adapter.
    """
    require_adapters(model).choose(_listed(adapter_names))


@contextlib.contextmanager
def disable_adapter(model: Any) -> Iterator[Any]:
    """Turns all adapters off within a `with` block, also merged ones, and in models and functions compiled before.

    Blocks can be nested. What is added or chosen within a block is used after it. `fit` and merging are refused there.
    In a training loop of your own, or in `fit` of a model around this one, the gradients of adapters that are off are
    zero: leave them out, as an optimizer with weight decay would move them. Files saved within the block are those of
    the model with its adapters on.
    """
    require_adapters(model)
    with disabled(model):
        yield model


def delete_adapter(model: Any, adapter_name: str) -> None:
    """Removes an adapter and its weights. Without its last adapter a model is plain again, as after `unload`.

    Raises:
        ValueError: there is none of that name, or it is merged.
    """
    require_adapters(model).remove(adapter_name)


def merge_adapter(model: Any, adapter_names: str | Sequence[str] | None = None) -> None:
    """Adds active adapters, by default all of them, to the weights of the base: they then cost no time.

    What is replaced is kept, so the weights that change take their memory twice. While adapters are merged, the model
    is not saved, and `fit` is refused if one of them would be trained.

    Raises:
        ValueError: an adapter is not active, cannot be merged, is merged already, or changes a weight that another
            layer holds too; merging it alone would change the order in which adapters are applied; or adapters are
            disabled. The model is then as before.
    """
    current = require_adapters(model)
    current.merge(_listed(current.active if adapter_names is None else adapter_names))


def unmerge_adapter(model: Any) -> None:
    """Undoes `merge_adapter`, bit for bit: the weights of the base were kept."""
    require_adapters(model).unmerge()


def merge_and_unload(model: Any, adapter_names: str | Sequence[str] | None = None) -> Any:
    """Merges adapters and removes all: the result is a plain Keras model with the new weights.

    The old weights are not kept: apart from one layer at a time this takes no memory.

    Args:
        model: a model with adapters.
        adapter_names: those to merge, applied in the order in which they were added; None is the active ones.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: there is no such adapter, one cannot be merged, also because another layer holds the weight too, or
            adapters are disabled. The weights of the model are then as before.
    """
    current = require_adapters(model)
    current.dissolve(merge=True, names=None if adapter_names is None else _listed(adapter_names))
    return model


def unload(model: Any) -> Any:
    """Removes all adapters: the model is as it was before, bit for bit."""
    require_adapters(model).dissolve()
    return model


def _listed(names: str | Sequence[str]) -> list[str]:
    """Returns the names of adapters as a list; one alone may be given as it is."""
    if isinstance(names, Mapping) or not isinstance(names, Iterable):
        raise ValueError(f"adapter_names must be the name of an adapter or a list of names. Received: {names!r}")
    return [names] if isinstance(names, str) else list(names)
