"""The name map between a Keras model and Hugging Face: which module a layer is there, and where each element lies.

For a KerasHub backbone both are recorded from KerasHub's converter; there is no table of weights. A layer that Hugging
Face does not know is a module by its Keras path, with the axes in torch's order.
"""

import dataclasses
import difflib
import os
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kopt.peft.exchange import kerashub_converter
from kopt.peft.exchange.placement import (
    Factors,
    Placement,
    Port,
    find_factors,
    find_placements,
    placement_key,
    torch_placement,
)
from kopt.peft.exchange.strict_json import read_json
from kopt.peft.exchange.task_names import HEADS, common_prefix, find_prefix, renamed
from kopt.peft.exchange.tensor_file import read_shapes
from kopt.peft.layers import QuantizedKernel, Site, named_layers, stored_weights

Array = np.ndarray[Any, Any]
_PARAMETERS = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "scale": "weight", "beta": "bias"}
_MAY_DIFFER = ("image_size", "max_position_embeddings", "n_positions")
"""Entries of the configuration in which a model may differ from its base."""


@dataclasses.dataclass
class Checkpoint:
    """What is known of the Hugging Face base: its configuration, and the shapes of its tensors."""

    config: dict[str, Any] | None = None
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    directory: str | None = None


def read_checkpoint(base_model: Any) -> Checkpoint:
    """Returns what a configuration, or a directory with `config.json`, says of the base.

    Raises:
        ValueError: it is neither, or a file there cannot be read.
    """
    if base_model is None:
        return Checkpoint()
    if isinstance(base_model, Mapping):
        return Checkpoint(dict(base_model))
    folder = pathlib.Path(os.fspath(base_model))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"base_model must be the configuration of a Hugging Face model, as a dict, or a folder with its "
            f"config.json. Received: {base_model!r}"
        )
    config, index = read_json(folder / "config.json"), folder / "model.safetensors.index.json"
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} is no configuration of a model.")
    files = ["model.safetensors"]
    if index.is_file():
        content = read_json(index)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(listed, dict) or any(
            not isinstance(f, str) or f != pathlib.Path(f).name for f in listed.values()
        ):
            raise ValueError(f"{index} is no index of files in its folder.")
        files = sorted(set(listed.values()))
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        if (folder / name).is_file():
            shapes |= {_modern(key): shape for key, shape in read_shapes(folder / name).items()}
    return Checkpoint(config, shapes, str(folder))


def _modern(key: str) -> str:
    """Returns the name of a tensor as transformers reads it; old BERT checkpoints say gamma and beta."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))


class Names:
    """The name map of one model.

    Args:
        model: the model, with adapters or without.
        base: what is known of the Hugging Face base.
        modules: Hugging Face modules by Keras path, for layers outside of the backbone, such as a head.

    Raises:
        ValueError: the converter must see the checkpoint, or `modules` names no layer, or `base` is another model.
    """

    def __init__(self, model: Any, base: Checkpoint | None = None, modules: Mapping[str, str] | None = None) -> None:
        self.base = base or Checkpoint()
        self.paths = dict(named_layers(model))
        self.prefix, self._converter = "", ""
        records: dict[tuple[str, str], kerashub_converter.Record] = {}
        self._below: str | None = ""
        self._inside: set[str] = set()
        found = self._record(model)
        if found is not None:
            self._converter, records = found
            keys = [record.key for record in records.values()]
            self.prefix = common_prefix(keys)
            self._below = find_prefix(self._converter, keys, self.base.shapes, self.base.config or {})
        self.known = bool(records)
        """Whether Hugging Face knows the model."""
        given = self._checked_modules(modules or {})
        self.ports: dict[tuple[str, str], Port] = {}
        self.by_module: dict[str, list[Port]] = {}
        self._joined: dict[str, tuple[int, ...]] = {}
        for path, layer in self.paths.items():
            for attr, variable in stored_weights(layer).items():
                self._add(path, layer, attr, variable, records.get((path, attr)), given.get(path))
        self._spelled = {m: m for m in self.by_module} | {self.renamed(m): m for m in self.by_module}
        self._deepest = max((name.count(".") + 1 for name in self._spelled), default=0)
        self._shapes = self._checkpoint_shapes()
        if self._shapes:
            self._shapes |= self._joined
        self.tied: Port | None = None
        """The embedding whose transpose is the output matrix too, in a model that generates text."""
        self.generates = self.known and hasattr(model, "call_with_cache")
        """Whether it is a language model with its output matrix."""
        if self.generates:
            ports = [p for p in self.ports.values() if p.site is not None and p.site.kind == "embedding"]
            self.tied = next((p for p in ports if getattr(p.layer, "tie_weights", False)), None)
        self._factors: dict[Any, Factors] = {}

    # --------------------------------------------------------------------------------------------- building

    def _record(self, model: Any) -> tuple[str, dict[tuple[str, str], kerashub_converter.Record]] | None:
        """Returns the converter's name and what it told by (path, attribute)."""
        found, config = kerashub_converter.find_backbones(model), self.base.config
        if len(found) > 1:
            warnings.warn(
                "The model has several backbones. Its adapters are saved under Keras' names, which kopt loads and "
                "Hugging Face does not.",
                stacklevel=5,
            )
            return None
        if found:
            (backbone, converter), owner = found[0], kerashub_converter.locate_variables(model)
            inner = {id(layer) for _, layer in named_layers(backbone)}
        elif config is not None and (made := kerashub_converter.build_twin(model, config)) is not None:
            backbone, converter = made
            owner = kerashub_converter.locate_variables(backbone)
        else:
            return None
        self._inside = {path for path, layer in self.paths.items() if id(layer) in inner} if found else set()
        if config is not None:
            _check_config(config, kerashub_converter.derive_config(converter, backbone))
        records: dict[tuple[str, str], kerashub_converter.Record] = {}
        for record in kerashub_converter.record(backbone, converter, config, self.base.shapes):
            if id(record.variable) in owner:
                path, _, attr = owner[id(record.variable)]
                records.setdefault((path, attr), record)
        for (path, attr), record in records.items() if not found else ():
            own = stored_weights(self.paths[path]).get(attr) if path in self.paths else None
            if own is None or tuple(own.shape) != tuple(record.variable.shape):
                raise ValueError(
                    f"base_model is another architecture than the model: {path} ({record.key}, shape "
                    f"{tuple(record.variable.shape)}) is not in the model. Pass the base that the model was made from."
                )
        return converter.__name__.rpartition(".convert_")[2], records

    def _checked_modules(self, modules: Mapping[str, str]) -> dict[str, str]:
        for path in modules:
            if path not in self.paths:
                near = difflib.get_close_matches(path, self.paths, n=3, cutoff=0.0)
                raise ValueError(f"modules: the model has no layer {path!r}. Closest layer names: {', '.join(near)}.")
        return dict(modules)

    def _add(
        self,
        path: str,
        layer: Any,
        attr: str,
        variable: keras.Variable | QuantizedKernel,
        record: kerashub_converter.Record | None,
        given: str | None,
    ) -> None:
        name = attr.removeprefix("_")
        module, parameter = given or path, _PARAMETERS.get(name, name)
        if record is not None and given is None:
            module, _, parameter = self._bare(_modern(record.key)).rpartition(".")
            if record.shape is not None:
                self._joined[f"{module}.{parameter}"] = record.shape
        taken = self.by_module.get(module, [])
        if record is None and any(p.parameter == parameter for p in taken):
            if any(p.path != path for p in taken):
                raise ValueError(f"modules: {path} and {taken[0].path} cannot both be {module!r}.")
            parameter = name
        port = Port(path, attr, layer, variable, module, parameter, None if given else record)
        self.ports[path, attr] = port
        self.by_module.setdefault(module, []).append(port)

    def _bare(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name

    def _checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes in the checkpoint by bare names, whatever its own prefix is."""
        shapes = self.base.shapes
        keys = [f"{p.module}.{p.parameter}" for p in self.ports.values() if p.record is not None]
        for key in keys[:8]:
            for full in shapes:
                if full == key or full.endswith(f".{key}"):
                    start = full[: -len(key)]
                    return {name.removeprefix(start): shape for name, shape in shapes.items()}
        return dict(shapes)

    # ---------------------------------------------------------------------------------------------- names

    def written(self, module: str, task: bool) -> str:
        """Returns the name of a module in an adapter file.

        Args:
            module: bare name.
            task: whether the model has a head there, so that the base sits below a prefix.

        Raises:
            ValueError: the prefix is not known. With a wrong one peft would warn and use the plain base.
        """
        ports = self.by_module.get(module, [])
        if not any(p.record is not None for p in ports) or _outside(ports):
            return module
        if task and self._below is None:
            raise ValueError(
                f"It is not known what models with a head call the base that {module} belongs to. Pass "
                "base_model=DIRECTORY, the folder of a checkpoint with a head (config.json and model.safetensors), "
                "or install transformers and torch."
            )
        return f"{self._below}.{self.renamed(module)}" if task and self._below else self.renamed(module)

    def renamed(self, module: str) -> str:
        """Returns a module's name in transformers 5."""
        return renamed(self._converter, module)

    def find(self, name: str) -> str | None:
        """Returns the bare name of a module in a file, under whatever prefix and in the old or the new spelling."""
        parts = name.split(".")[-self._deepest :]  # names of strangers may have hundreds of parts
        for i in range(len(parts)):
            if (tail := ".".join(parts[i:])) in self._spelled:
                return self._spelled[tail]
        return None

    def nearest(self, name: str) -> str:
        """Returns the modules most like a name, to show in an error."""
        spelled = [self.renamed(m) for m in self.by_module]
        return ", ".join(difflib.get_close_matches(name, spelled, n=3, cutoff=0.0))

    def check(self, module: str, parameter: str) -> None:
        """Raises ValueError if the checkpoint of the base has no such tensor: peft would say nothing.

        Warns of a layer of the backbone that no tensor of the checkpoint alone becomes.
        """
        ports = self.by_module.get(module, [])
        known = any(p.record is not None for p in ports)
        if not known and any(p.path in self._inside for p in ports):
            warnings.warn(
                f"{ports[0].path} is no module of its own at Hugging Face, so its adapter is saved under its Keras "
                "name, which kopt loads and Hugging Face does not. Leave it out of target_modules for a file that "
                "Hugging Face can use.",
                stacklevel=5,
            )
        if not known or not self._shapes or f"{module}.{parameter}" in self._shapes:
            return
        raise ValueError(
            f"The base in {self.base.directory} has no tensor {module}.{parameter}, so an adapter for it would be "
            "ignored there. Pass the base_model that the model was made from."
        )

    def universe(self) -> list[str]:
        """Returns all modules there are, as far as known: those of the model, and those of the checkpoint."""
        there = [key.rpartition(".")[0] for key in self._shapes]
        return list(dict.fromkeys([*self.by_module, *there]))

    # ---------------------------------------------------------------------------------------------- places

    def group(self, port: Port) -> list[Port]:
        """Returns the ports that share the tensor of `port`, as query, key and value do in GPT-2, in its order."""
        return [p for p in self.by_module[port.module] if p.parameter == port.parameter]

    def placement(self, port: Port) -> Placement:
        """Returns where the elements of a variable lie.

        Raises:
            ValueError: the shape of the tensor is not known and does not follow from the variable.
        """
        if port.record is None:
            return torch_placement(port)
        group, name = self.group(port), f"{port.module}.{port.parameter}"
        places = find_placements(group, self._shapes.get(name))
        if places is None:
            raise ValueError(
                f"It is not clear how the tensor {name} becomes "
                f"{', '.join(f'{p.path}.{p.attr} {tuple(p.variable.shape)}' for p in group)}. Pass "
                "base_model=DIRECTORY, the folder of the Hugging Face checkpoint that the model was made from."
            )
        return places[group.index(port)]

    def factors(self, port: Port, site: Site) -> Factors:
        """Returns the inputs and outputs of a kernel in its tensor.

        Raises:
            ValueError: inputs and outputs are mixed there, so that a product of two factors is none there.
        """
        group = [port] if port.record is None else self.group(port)
        key = (placement_key(group, self._shapes.get(f"{port.module}.{port.parameter}")), group.index(port))
        if key not in self._factors:
            found = find_factors(port, site, self.placement(port))
            if found is None:
                raise ValueError(
                    f"{port.path}: the tensor {port.module}.{port.parameter} mixes inputs and outputs of the Keras "
                    f"kernel {site.shape}, or stacks several kernels, so low-rank factors cannot be carried over."
                )
            self._factors[key] = found
        return self._factors[key]


def _outside(ports: Sequence[Port]) -> bool:
    """Returns whether the converter itself puts a module beside the base, as it does lm_head."""
    return any(p.record is not None and p.record.key.split(".")[0] in HEADS for p in ports)


def _check_config(config: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
    for key, value in derived.items():
        other = config.get(key, value)
        if key in _MAY_DIFFER:
            continue
        if isinstance(value, int) and isinstance(other, int) and other != value:
            raise ValueError(f"base_model is another base than the model's: its {key} is {other}, the model's {value}.")


def shortest_suffixes(chosen: Iterable[str], universe: Iterable[str]) -> list[str]:
    """Returns short names that select `chosen` among `universe` and nothing else, as peft reads them.

    The last name of a module is enough where no other module ends in it; "dense" alone never is, for heads have such
    layers too.
    """
    wanted = set(chosen)
    others = set(universe) - wanted
    suffixes: dict[str, None] = {}
    for module in sorted(wanted):
        parts = module.split(".")
        for start in range(len(parts) - 1, -1, -1):
            suffix = ".".join(parts[start:])
            if suffix == "dense" and start:
                continue
            if not any(other == suffix or other.endswith(f".{suffix}") for other in others):
                break
        suffixes[suffix] = None
    # A name within another is said already.
    return [s for s in suffixes if not any(s != t and s.endswith(f".{t}") for t in suffixes)]
