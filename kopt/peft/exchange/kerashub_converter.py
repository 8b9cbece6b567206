"""What Hugging Face calls the weights of a KerasHub backbone, recorded from KerasHub's own converter.

The converter of an architecture copies a checkpoint into a backbone, tensor by tensor. Run with a loader that only
takes notes, it tells for every variable the name of the tensor it comes from and the function that brings the tensor
into shape. KerasHub is imported here only if the model contains one of its layers.
"""

import contextlib
import importlib
import inspect
import io
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from kopt.peft.exchange.task_names import join_experts
from kopt.peft.layers import kernels_shown, named_layers, original_class, stored_weights

Array = np.ndarray[Any, Any]
_CONVERTERS = "keras_hub.src.utils.transformers"
_PACKED = "_blocks"
"""End of the keys of tensors with two numbers of 4 bits a byte."""
_SAMPLE = 4096
"""Number of elements that are looked at to see whether all experts are moved alike."""


class Record(NamedTuple):
    """A variable and the tensor it comes from."""

    variable: keras.Variable
    key: str
    hook: Callable[[Array, list[int]], Array] | None
    positions: Array | None
    """Place of each element in the flat tensor, where the converter assigns by itself."""
    axes: tuple[Array, ...] | None = None
    """The same of a batch of kernels, along each axis of the tensor: views, because all experts are many elements."""
    shape: tuple[int, ...] | None = None
    """Shape of that tensor, which a checkpoint may lack: transformers 5 joins those of all experts, or unpacks it."""


def is_of_keras_hub(layer: Any) -> bool:
    """Returns whether KerasHub defines the layer's class."""
    return type(layer).__module__.startswith("keras_hub.")


def find_converter(layer: Any, model: Any = None) -> Any | None:
    """Returns the converter module for a backbone, or None.

    Args:
        layer: perhaps a backbone.
        model: the model that it is in. Where several converters make backbones of the class, it is the one that has the
            name of the model: a Gemma 4 that drafts tokens for another has other names than that.
    """
    if "keras_hub" not in sys.modules:
        return None
    backbone = importlib.import_module("keras_hub").models.Backbone
    cls = original_class(layer)
    if not issubclass(cls, backbone):
        return None
    package = importlib.import_module(_CONVERTERS)
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("convert_"))
    modules = [importlib.import_module(f"{_CONVERTERS}.{name}") for name in names]
    known = [m for m in modules if hasattr(m, "backbone_cls")]
    file = original_class(model).__module__.rpartition(".")[2] if model is not None else ""
    for fits in (
        lambda target: target is cls,
        lambda target: issubclass(cls, target),
        lambda target: issubclass(target, cls),  # the converter knows Llama by its latest version
    ):
        if found := [module for module in known if fits(module.backbone_cls)]:
            return next((m for m in found[1:] if file.startswith(m.__name__.rpartition(".convert_")[2])), found[0])
    return None


def find_backbones(model: Any) -> list[tuple[Any, Any]]:
    """Returns (backbone, converter) for the model itself or for those in it, not those inside another."""
    converter = find_converter(model)
    if converter is not None:
        return [(model, converter)]
    found: list[tuple[str, Any, Any]] = []
    for path, layer in named_layers(model):
        if any(path.startswith(f"{outer}.") for outer, _, _ in found):
            continue
        converter = find_converter(layer, model)
        if converter is not None:
            found.append((path, layer, converter))
    return [(layer, converter) for _, layer, converter in found]


def build_twin(model: Any, config: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Returns a new backbone, built from a Hugging Face configuration, whose layers have the names that `model` has.

    For a model made from the tensors of a backbone: it holds the layers, but the backbone is not among them.
    """
    if not any(is_of_keras_hub(layer) for _, layer in named_layers(model)):
        return None
    loader = importlib.import_module(f"{_CONVERTERS}.preset_loader")
    try:
        converter = loader.TransformersPresetLoader("", dict(config)).converter
        backbone = converter.backbone_cls(**_convert(converter, config))
    except (KeyError, ValueError, TypeError):
        return None
    return backbone, converter


def record(backbone: Any, converter: Any, config: Mapping[str, Any] | None, shapes: Mapping[str, Any]) -> list[Record]:
    """Returns which tensor each variable of a backbone comes from.

    Args:
        backbone: the backbone.
        converter: KerasHub's converter for it.
        config: the Hugging Face configuration; None derives what the converter reads of it from the backbone.
        shapes: shapes of the tensors in the checkpoint, if known.

    Raises:
        ValueError: the converter needs to see the checkpoint.
    """
    recorder = _Recorder(shapes)
    known = derive_config(converter, backbone) | dict(config or {})
    with _assignments(backbone, recorder), contextlib.redirect_stdout(io.StringIO()):  # some print how they fared
        try:
            converter.convert_weights(backbone, recorder, known)
        except Exception as error:
            raise ValueError(
                f"The Hugging Face names of {original_class(backbone).__name__} cannot be told from the backbone: "
                f"KerasHub's converter stopped with {type(error).__name__}: {error}. Pass base_model=DIRECTORY, the "
                "folder of the Hugging Face checkpoint (config.json and model.safetensors)."
            ) from error
    return recorder.records


class _Recorder:
    """Takes the place of KerasHub's loader of checkpoints, and notes what the converter asks for."""

    prefix = ""
    safetensor_config = None
    """What the loader has of a checkpoint in one file; converters that look for tensors left over read it."""

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        self.records: list[Record] = []
        self._shapes = shapes
        self._starts: list[tuple[int, str]] = [(0, "")]
        self._asked: list[tuple[str, tuple[int, ...]]] = []
        self._packed: list[tuple[str, int]] = []

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        """Notes instead of assigning."""
        self.records.append(Record(keras_variable, hf_weight_key, hook_fn, None))

    def get_prefixed_key(self, key: str, *_: Any) -> str:
        """Returns the key; prefixes are dealt with elsewhere."""
        return key

    def get_tensor(self, key: str) -> Array:
        """Returns the places of a tensor's elements, counted over all tensors asked for."""
        full = key if key in self._shapes else next((k for k in self._shapes if k.endswith(f".{key}")), None)
        if full is None:
            raise KeyError(key)
        shape, start = self._shapes[full], self._starts[-1][0]
        size = math.prod(shape)
        self._starts[-1] = (start, key)
        self._starts.append((start + size, ""))
        self._asked.append((key, tuple(shape)))
        if key.endswith(_PACKED):
            self._packed.append((key.removesuffix(_PACKED), 2 * size))  # two numbers a byte
        return np.arange(start, start + size).reshape(shape)

    def assigned(self, variable: Any, value: Any) -> None:
        """Notes a direct assignment if it only moves elements of one tensor, or of those that become one."""
        places = np.asarray(value)
        if self._packed and self._packed[0][1] == places.size and np.issubdtype(places.dtype, np.floating):
            own = tuple(variable.shape)  # as transformers has it after unpacking, too
            axes = tuple(np.broadcast_to(i, own) for i in np.ogrid[tuple(slice(n) for n in own)])
            self.records.append(Record(variable, self._packed.pop(0)[0], None, None, axes, own))
        if not np.issubdtype(places.dtype, np.integer) or not places.size:
            return
        for (start, key), (end, _) in zip(self._starts, self._starts[1:], strict=False):
            if start <= places.min() and places.max() < end:
                self.records.append(Record(variable, key, None, places - start))
                return
        if places.ndim == 3 and (joined := self._joined(places)) is not None:
            key, axes, shape = joined
            self.records.append(Record(variable, key, None, None, axes, shape))

    def _joined(self, places: Array) -> tuple[str, tuple[Array, ...], tuple[int, ...]] | None:
        """Returns key, places and shape of the tensor of all experts that transformers 5 makes of theirs.

        Args:
            places: [experts, in, out], each expert moved alike.
        """
        starts = np.array([start for start, _ in self._starts[:-1]])
        used = np.unique(np.searchsorted(starts, places[:, :1], side="right") - 1)
        joined = join_experts([self._asked[i] for i in used])
        if joined is None:
            return None
        key, shape, offsets = joined

        def coordinates(some: Array) -> Array:
            tensors = np.searchsorted(starts, some, side="right") - 1
            within = some - starts[tensors] + np.array(offsets)[np.searchsorted(used, tensors)]
            return np.array(np.unravel_index(within, shape))

        lines = [coordinates(line) for line in (places[:, 0, 0], places[0, :, 0], places[0, 0])]
        own: list[int] = []
        for i in range(3):
            own += [k for k, line in enumerate(lines) if (line[i] != line[i, 0]).any()][:1] or [0]
        axes = tuple(
            np.broadcast_to(lines[k][i].reshape([-1 if j == k else 1 for j in range(3)]), places.shape)
            for i, k in enumerate(own)
        )
        sample = tuple(np.random.default_rng(0).integers(0, n, _SAMPLE) for n in places.shape)
        same = (coordinates(places[sample]) == np.array([axis[sample] for axis in axes])).all()
        return (key, axes, shape) if same else None


@contextlib.contextmanager
def _assignments(backbone: Any, recorder: _Recorder) -> Iterator[None]:
    """Sends what is assigned to the backbone's variables to the recorder, so that they stay as they are."""
    with kernels_shown(backbone) as kernels:
        variables = [*backbone.variables, *kernels]
        for variable in variables:
            vars(variable)["assign"] = lambda value, _to=variable: recorder.assigned(_to, value)
        try:
            yield
        finally:
            for variable in variables:
                vars(variable).pop("assign", None)


# ---------------------------------------------------------------------------------------- configuration from a backbone


class _Tag(int):
    """A number that knows from which entry of a configuration it was read.

    KerasHub's converter turns the configuration of Hugging Face into arguments of the backbone. Given tags, it
    shows which entry becomes which argument, and so the arguments of a backbone give the entries back:

        converter        config  ->  {"hidden_dim": config["hidden_size"], ...}
        of a tag         _Tag(())  ->  {"hidden_dim": _Tag(("hidden_size",)), ...}
        the backbone     backbone.hidden_dim == 768
        so               {"hidden_size": 768}

    Entries within entries have longer keys: `config["text_config"]["hidden_size"]` is
    `_Tag(("text_config", "hidden_size"))`. A tag is a number, because some converters compute with what they read.
    """

    keys: tuple[str, ...]
    whole: bool
    """Whether it stands for all elements of a list."""

    def __new__(cls, keys: tuple[str, ...], whole: bool = False) -> "_Tag":
        """Returns a small number: converters may count up to it."""
        tag = super().__new__(cls, 2)
        tag.keys, tag.whole = keys, whole
        return tag

    def __iter__(self) -> "Iterator[_Tag]":
        """Yields one tag for all elements: without an end of its own, `list(config["depths"])` would never return."""
        yield _Tag(self.keys, whole=True)

    def __getitem__(self, key: str) -> "_Tag":
        return _Tag((*self.keys, key))

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the default, as if nothing optional were set."""
        return default


def derive_config(converter: Any, backbone: Any) -> dict[str, Any]:
    """Returns the Hugging Face configuration as far as the backbone's own arguments give it back.

    See `_Tag` for how.
    """
    config: dict[str, Any] = {}
    try:
        arguments = _convert(converter, _Tag(()))
    except Exception:  # it computes with more than numbers; the converter of the weights may still ask for nothing
        return config
    for name, tag in arguments.items():
        value = getattr(backbone, name, None)
        if isinstance(tag, (tuple, list)) and len(tag) == 1 and getattr(tag[0], "whole", False):
            pairs = [(tag[0], value)]
        elif isinstance(tag, (tuple, list)) and isinstance(value, (tuple, list)):
            pairs = list(zip(tag, value, strict=False))
        else:
            pairs = [(tag, value)]
        for part, number in pairs:
            if isinstance(part, _Tag) and number is not None:
                place = config
                for key in part.keys[:-1]:
                    place = place.setdefault(key, {})
                place[part.keys[-1]] = number
    return config


def _convert(converter: Any, config: Any) -> dict[str, Any]:
    convert = converter.convert_backbone_config
    several = len(inspect.signature(convert).parameters) > 1
    return convert(config, converter.backbone_cls) if several else convert(config)


def locate_variables(model: Any) -> dict[int, tuple[str, Any, str]]:
    """Returns (path, layer, attribute) by the identity of each trainable variable and quantized kernel."""
    return {
        id(variable): (path, layer, attr)
        for path, layer in named_layers(model)
        for attr, variable in stored_weights(layer).items()
    }
