"""What one adapter of a model is in a file of Hugging Face peft: its tensors by key and its configuration."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kopt.peft import targets
from kopt.peft.adapter import Adapter, Array
from kopt.peft.exchange import raw_parameters, torch_layout
from kopt.peft.exchange.fingerprint import base_value
from kopt.peft.exchange.name_map import Names, shortest_suffixes
from kopt.peft.exchange.placement import Port
from kopt.peft.exchange.torch_layout import OUTPUT, OUTPUT_MODULE, PROMPT, TOKENS, TOKENS_BESIDE
from kopt.peft.host import AdapterLayer
from kopt.peft.layers import Spot, is_attention, stored_weights

_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_TASKS = (*_WITH_HEAD, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
"""The tasks that peft knows; others are written as none."""
_SELECTION = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)


class Writer:
    """Collects the tensors of one adapter under their names."""

    def __init__(self, names: Names, adapter: Adapter, adapter_name: str, task_type: str | None) -> None:
        self.names, self.adapter, self.adapter_name = names, adapter, adapter_name
        if task_type is None and names.generates and not adapter.extra.get("auto_mapping"):
            task_type = "CAUSAL_LM"
        self.task_type = task_type
        self.parts: dict[str, list[torch_layout.Part]] = {}
        self.parameters: dict[tuple[str, str], list[torch_layout.Part]] = {}
        """Those of `target_parameters`, by module and name in it."""
        self.copies: dict[tuple[str, str], list[tuple[Port, Array]]] = {}
        self.whole: dict[str, None] = {}
        self.shared: dict[str, Array] = {}
        """Those that all layers have in common."""
        self.prefixes: dict[str, tuple[Spot, Array]] = {}
        """Those of attention layers, by path."""
        self.sampled: list[Port] = []
        self.extra: dict[str, Any] = {}
        self.entries: dict[str, tuple[str, str]] = {}
        """Module and name in it by key, as a reader must find them."""

    def add(self, path: str, layer: AdapterLayer) -> None:
        """Takes what the adapter has at one layer."""
        names, name = self.names, self.adapter_name
        whole = targets.matches(self.adapter.modules_to_save, path)
        for attr, copy in layer.copies[name].items():
            port = names.ports[path, attr]
            self.copies.setdefault((port.module, port.parameter), []).append((port, copy.numpy()))
            if whole:
                self.whole[port.module] = None
        for site in layer.sites.values():
            weights = layer.weights_at(name, site)
            if not weights:
                continue
            if isinstance(site, Spot):
                self._add_prefix(path, site, layer.adapters[name], weights)
                continue
            port = names.ports[path, site.attr]
            if (raw := site is not layer.site) and port.record is None:
                raise ValueError(
                    f"{path}.{site.attr} is adapted by target_parameters, which cannot be written in the form of peft: "
                    "KerasHub's converter names no tensor of Hugging Face that it alone moves there. model.save(...) "
                    "keeps the adapter."
                )
            if raw:
                raw_parameters.check_method(layer.adapters[name], f"{path}.{site.attr}")
            of_all = getattr(self.adapter, "lora_bias", False)
            if getattr(layer.adapters[name], "lora_bias", of_all) != of_all:
                raise ValueError(
                    f"{path} has no lora_bias, and a file of peft has one for every layer or for none. model.save(...) "
                    "keeps the adapter."
                )
            values = layer.adapters[name].fold({k: np.asarray(v.numpy(), "float32") for k, v in weights.items()})
            part = torch_layout.Part(path, site, names.factors(port, site), layer.adapters[name], values)
            self.shared |= {key: values[key].transpose() for key in torch_layout.shared(part.adapter, site)}
            if raw:
                self.parameters.setdefault((port.module, port.parameter), []).append(part)
            else:
                self.parts.setdefault(port.module, []).append(part)
        if not whole:
            self.sampled += [names.ports[path, attr] for attr in stored_weights(layer.host())]

    def _add_prefix(self, path: str, site: Spot, adapter: Adapter, weights: Mapping[str, Any]) -> None:
        if site.kind == "attention":
            values = adapter.fold({k: np.asarray(v.numpy(), "float32") for k, v in weights.items()})
            self.prefixes[path] = site, values["prefix"]
            self.sampled += [p for (inner, _), p in self.names.ports.items() if inner.startswith(f"{path}.")]

    def finish(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Returns the tensors by key, and the configuration."""
        self._check_names()
        task = self._has_head()
        start = "base_model.model." if self.adapter.gated else "base_model."
        tensors: dict[str, Array] = {}
        joined = {}
        for module, parts in self.parts.items():
            joined[module] = torch_layout.combine(parts, self._missing_lengths(module, parts))
            for spelled, value in joined[module].tensors.items():
                key = spelled if spelled == PROMPT else f"{start}{self.names.written(module, task)}.{spelled}"
                self._put(tensors, key, value, (PROMPT if spelled == PROMPT else module, spelled))
        if self.prefixes:
            self._put(tensors, PROMPT, self._whole_prefix(), (PROMPT, PROMPT))
        for shared, value in self.shared.items():
            self._put(tensors, f"base_model.{shared}", np.ascontiguousarray(value), ("", shared))
        raw = {entry: torch_layout.combine(parts, None) for entry, parts in self.parameters.items()}
        for (module, parameter), whole in raw.items():
            order = [p.parameter for p in self.names.by_module[module] if (module, p.parameter) in raw]
            depth = raw_parameters.wrapped(list(dict.fromkeys(order)))[parameter]
            for spelled, value in raw_parameters.to_peft(whole.tensors).items():
                key = f"{start}{self.names.written(module, task)}{depth}.{spelled}"
                self._put(tensors, key, value, (f"{module}.{parameter}", spelled))
        tied = self.names.tied
        own = joined[tied.module].tensors.keys() if tied is not None and tied.module in joined else set[str]()
        if tied is not None and TOKENS in own:
            tensors[f"{start}{OUTPUT_MODULE}.{TOKENS}"] = joined[tied.module].tensors[TOKENS]
        if tied is not None and (own - {TOKENS, TOKENS_BESIDE} or tied.module in self.whole):
            name = self.names.written(tied.module, task)
            if tied.module in self.whole or own != OUTPUT.keys():
                raise ValueError(
                    f"{tied.path} is the output matrix too. peft can change both alike by LoRA and by trainable tokens "
                    "only, so this adapter cannot be written for it."
                )
            self.extra["ensure_weight_tying"] = True
            for inner, other in OUTPUT.items():
                tensors[f"{start}{OUTPUT_MODULE}.{other}"] = np.ascontiguousarray(tensors[f"{start}{name}.{inner}"].T)
        for (module, parameter), entries in self.copies.items():
            between = ""
            if module not in self.whole:
                between = "base_layer." if module in self.parts and self.adapter.in_peft else ""
                between = "ln_tuning_layers." if self.adapter.peft_type == "LN_TUNING" else between
            key = f"{start}{self.names.written(module, task)}.{between}{parameter}"
            self._put(tensors, key, self._copy(module, parameter, entries), (module, parameter))
        for key, value in tensors.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{key} has NaN or infinite values. Nothing was written.")
        return tensors, self._config(joined, raw, task)

    def _put(self, tensors: dict[str, Array], key: str, value: Array, entry: tuple[str, str]) -> None:
        if key in tensors:
            raise ValueError(
                f"Two weights of {type(self.adapter).__name__} would both be {key} in the file. Give the weight that "
                "its method declares another name, as adapter_scale. Nothing was written."
            )
        tensors[key], self.entries[key] = value, entry

    def _whole_prefix(self) -> Array:
        named = self.names.paths
        if left := [p for p, x in named.items() if p not in self.prefixes and is_attention(x)]:
            raise ValueError(
                f"{left[0]} has no prefix, and a file of peft has one for every attention. model.save(...) keeps it."
            )
        return torch_layout.join_prefix([self.prefixes[path][1] for path in named if path in self.prefixes])

    def _check_names(self) -> None:
        for module, parts in self.parts.items():
            self.names.check(module, self.names.ports[parts[0].path, parts[0].site.attr].parameter)
        for module, parameter in [*self.copies, *self.parameters]:
            self.names.check(module, parameter)

    def _has_head(self) -> bool:
        """Returns whether the model has a head in Hugging Face."""
        outside = any(p.record is None for module in self.whole for p in self.names.by_module[module])
        if self.names.known and self.task_type in _WITH_HEAD and not outside:
            raise ValueError(
                f"With task_type={self.task_type!r} peft expects a head in the file. Train the head too, with "
                "modules_to_save=['name of the layer'], or leave task_type out."
            )
        if self.task_type is not None:
            return self.task_type != "FEATURE_EXTRACTION"
        mapping = self.adapter.extra.get("auto_mapping") or {}
        if mapping.get("base_model_class"):
            # GPT2LMHeadModel and GPT2DoubleHeadsModel have one, GPT2Model has none.
            return re.search(r"(?<!Head)(?<!Heads)Model$", mapping["base_model_class"]) is None
        return outside

    def _missing_lengths(self, module: str, parts: list[torch_layout.Part]) -> Array | None:
        """Returns the norms of the base for each output of a module of which not all layers are adapted."""
        port = self.names.ports[parts[0].path, parts[0].site.attr]
        group = self.names.group(port)
        if len(group) == len(parts):
            return None
        lengths = np.zeros(parts[0].factors.output_length, "float32")
        for other in group:
            site = other.site
            assert site is not None
            norms = np.linalg.norm(site.matrix(base_value(other)), axis=-2)
            lengths[self.names.factors(other, site).outputs] = norms
        return lengths

    def _copy(self, module: str, parameter: str, entries: list[tuple[Port, Array]]) -> Array:
        """Returns a trained copy; of a module that is several layers, with the other layers' own values."""
        group = self.names.group(entries[0][0])
        trained = {(port.path, port.attr): value for port, value in entries}
        tensor = np.full(self.names.placement(group[0]).shape, np.nan, "float32")
        for port in group:
            own = (port.path, port.attr)
            value = trained[own] if own in trained else base_value(port)
            self.names.placement(port).put(value, tensor)
        if np.isnan(tensor).any() and all(np.isfinite(v).all() for v in trained.values()):
            raise ValueError(
                f"{module}.{parameter} has elements in Hugging Face that Keras does not have (shape {tensor.shape} "
                f"against {tuple(group[0].variable.shape)}), so the trained layer cannot be written there."
            )
        return tensor

    def _config(
        self,
        joined: Mapping[str, torch_layout.Module],
        raw: Mapping[tuple[str, str], torch_layout.Module],
        task: bool,
    ) -> dict[str, Any]:
        adapter, names = self.adapter, self.names
        config = {key: value for key, value in adapter.get_config().items() if value is not None and key != "extra"}
        for field in _SELECTION:
            config.pop(field, None)
        rows = {module: self.parts[module] for module in joined if TOKENS_BESIDE in joined[module].tensors}
        joined = {module: own for module, own in joined.items() if module not in rows}
        written = {module: names.written(module, task) for module in joined}
        if not joined and self.copies:
            written = {m: names.written(m, task) for m, _ in self.copies if m not in self.whole}
        universe = [names.written(module, task) for module in names.universe()]
        if rows:
            named = {module: shortest_suffixes([names.written(module, task)], universe)[0] for module in rows}
            tokens = {named[module]: parts[0].adapter.token_indices for module, parts in rows.items()}
            config["trainable_token_indices"] = tokens
        if adapter.gated:
            config["target_modules"] = shortest_suffixes(written.values(), universe)
        if self.whole:
            config["modules_to_save"] = [names.written(module, task) for module in self.whole]
        if adapter.patterned:
            spelled = {entry: f"{names.written(entry[0], task)}.{entry[1]}" for entry in raw}
            config |= self._ranks([*joined.values(), *raw.values()], [*written.values(), *spelled.values()])
            if raw:
                there = [f"{name}.{p.parameter}" for name in universe for p in names.by_module.get(name, ())]
                config["target_parameters"] = shortest_suffixes(spelled.values(), there)
            if adapter.get_config().get("init_lora_weights") in ("eva", "loftq"):
                config["init_lora_weights"] = True  # peft would look for batches, or for another base
            if any("start_A" in p.values for parts in [*self.parts.values(), *self.parameters.values()] for p in parts):
                config["init_lora_weights"] = True  # A₀ and B₀ have become part of A and B
        if any(part.factors.transposed for parts in self.parts.values() for part in parts):
            config["fan_in_fan_out"] = True
        if adapter.peft_type == "IA3":
            # peft wants each of these names among the targets, letter by letter.
            inner = {m for m, parts in self.parts.items() if parts[0].adapter.scales_input}
            config["feedforward_modules"] = shortest_suffixes([written[m] for m in inner], universe)
            rest = shortest_suffixes([name for m, name in written.items() if m not in inner], universe)
            config["target_modules"] = sorted({*config["feedforward_modules"], *rest})
        if not adapter.gated:
            if self.task_type is None and task:
                raise ValueError("A prompt for a model with a head needs its task_type, as in task_type='SEQ_CLS'.")
            spots = [spot for spot, _ in self.prefixes.values()]
            width = spots[0].fan_out if spots else next(iter(joined.values())).tensors[PROMPT].shape[1]
            config |= {"token_dim": width, "num_transformer_submodules": 1}
            config |= {"num_layers": len(spots), "num_attention_heads": spots[0].heads} if spots else {}
            self.task_type = self.task_type or "FEATURE_EXTRACTION"
        if not adapter.in_peft:
            config["method"] = type(adapter).__name__.lower()
        known = {"base_model_name_or_path": None, "inference_mode": True} | adapter.extra | self.extra
        task_type = self.task_type if self.task_type in _TASKS else None
        return known | config | type(adapter).fixed | {"peft_type": adapter.peft_type, "task_type": task_type}

    def _ranks(self, modules: Sequence[torch_layout.Module], written: Sequence[str]) -> dict[str, Any]:
        """Returns the usual rank and α, and patterns for the modules that have others."""
        fields: dict[str, Any] = {}
        for pattern, field in self.adapter.patterned.items():
            values = {name: module.local[field] for name, module in zip(written, modules, strict=True)}
            usual = max(values.values(), key=list(values.values()).count)
            other = {value for value in values.values() if value != usual}
            fields[field] = _number(usual)
            fields[pattern] = {
                re.escape(suffix): _number(value)
                for value in sorted(other)
                for suffix in shortest_suffixes([m for m, v in values.items() if v == value], values)
            }
        return fields


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
