"""What a file of Hugging Face peft holds for the layers of a Keras model."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kopt.declare.patterns import matches_whole
from kopt.peft.adapter import Adapter, Array
from kopt.peft.exchange import raw_parameters, torch_layout
from kopt.peft.exchange.config_file import arguments, check_named
from kopt.peft.exchange.fingerprint import base_value
from kopt.peft.exchange.name_map import Names
from kopt.peft.exchange.placement import Factors
from kopt.peft.exchange.torch_layout import OUTPUT_MODULE, PROMPT, TOKENS, TOKENS_BESIDE
from kopt.peft.layers import Spot, own_variables, parameter_site
from kopt.peft.methods import LoRA
from kopt.peft.model import Plan, site_of
from kopt.peft.targets import by_pattern, is_called, matches

_KEY = re.compile(r"(.+?)\.(lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector|ia3_l)(?:\.weight)?")
"""What the weights of peft are called, whatever the method of the file."""
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
_BY_PATH = ("feedforward_modules", "trainable_token_indices")


class Reader:
    """Sorts the tensors of a file by module and gives them to Keras layers.

    Args:
        names: the name map of the model.
        config: what `adapter_config.json` says.
        tensors: what `adapter_model.safetensors` holds.
        prompted: module that a prompt goes to, if the file says so.
        method: the class that the configuration asks for.

    Raises:
        ValueError: a tensor belongs to a module that the model does not have.
    """

    def __init__(
        self,
        names: Names,
        config: Mapping[str, Any],
        tensors: Mapping[str, Array],
        prompted: str | None,
        method: type[Adapter],
    ) -> None:
        self.names, self.config, self.prompted, self.method = names, config, prompted, method
        self.declared, self.common = self._declared_names()
        self.shared: dict[str, Array] = {}
        """Those that all layers with the adapter have in common."""
        self.weights: dict[str, dict[str, Array]] = {}
        self.copies: dict[str, dict[str, Array]] = {}
        self.raw: dict[tuple[str, str], dict[str, Array]] = {}
        """Those of `target_parameters`, by module and name in it."""
        self.keys: dict[tuple[str, str], str] = {}
        self.spelled: dict[str, str] = {}
        output: dict[str, Array] = {}
        if OUTPUT_MODULE not in names.by_module:
            taken = f"{OUTPUT_MODULE}." if config.get("ensure_weight_tying") else f"{OUTPUT_MODULE}.{TOKENS}"
            output = {k: v for k, v in tensors.items() if _bare(k).startswith(taken)}
        wrapped = self._take_parameters(tensors) if config.get("target_parameters") else set[str]()
        rest = {key: value for key, value in tensors.items() if key not in output and key not in wrapped}
        unknown = [key for key, value in rest.items() if not self._take(key, value)]
        if unknown:
            raise ValueError(
                f"{len(unknown)} tensor(s) belong to modules that the model does not have, as {unknown[0]}. Closest "
                f"names: {names.nearest(_bare(unknown[0]))}. Layers outside of the backbone are named with "
                "modules={'keras path': 'module'}."
            )
        self._check_output({_bare(key).removeprefix(f"{OUTPUT_MODULE}."): value for key, value in output.items()})

    def _declared_names(self) -> tuple[list[str], set[str]]:
        """Returns what files call the weights that the method has at the layers of the model, and those of all."""
        adapter = self.method(**arguments(self.config, self.method))
        own: dict[str, None] = {}
        common: set[str] = set()
        for port in self.names.ports.values():
            if port.site is not None and adapter.can_host(port.layer, port.site):
                local = adapter.at(port.path)
                own |= dict.fromkeys(torch_layout.spelled(local, port.site))
                common |= torch_layout.shared(local, port.site).keys()
        own |= dict.fromkeys([TOKENS_BESIDE] if self.config.get("trainable_token_indices") else [])
        return sorted(own, key=len, reverse=True), common

    def _check_output(self, output: Mapping[str, Array]) -> None:
        """Raises ValueError if an embedding that is the output matrix too would have to change in one place only."""
        tied = self.names.tied
        own = set[str]() if tied is None else self.weights.get(tied.module, {}).keys() - {TOKENS, TOKENS_BESIDE}
        if tied is not None and not output and (own or tied.module in self.copies):
            raise ValueError(
                f"The adapter changes {self.spelled[tied.module]} but not the output matrix, which is the same weight "
                "in this model. Train it in peft with ensure_weight_tying=True."
            )
        torch_layout.check_output(list(self.weights.values()), output)

    def _take_parameters(self, tensors: Mapping[str, Array]) -> set[str]:
        """Keeps the factors of parameters that are no module's weight, and returns their keys.

        The file does not say which parameter a pair of factors belongs to; their shapes do.
        """
        found: dict[tuple[str, str], dict[str, tuple[str, Array]]] = {}
        for key, value in tensors.items():
            parts = raw_parameters.split(_bare(key))
            module = None if parts is None else self.names.find(parts[0])
            if parts is not None and module is not None and self._parameters_of(module):
                found.setdefault((module, parts[1]), {})[parts[2]] = (key, value)
                self.spelled[module] = parts[0]
        for (module, depth), pair in found.items():
            values = {name: value for name, (_, value) in pair.items()}
            free = [p for p in self._parameters_of(module).items() if (module, p[0]) not in self.raw]
            fitting = [(name, factors) for name, factors in free if raw_parameters.fits(values, factors)]
            if not fitting:
                shapes = ", ".join(f"{key} {value.shape}" for key, value in pair.values())
                raise ValueError(
                    f"{shapes}: these are no factors of {' or '.join(name for name, _ in free) or 'a weight'} in "
                    f"{self.spelled[module]}{depth}. The adapter was trained on another base, or the file is damaged."
                )
            name, factors = fitting[0]
            self.raw[module, name] = raw_parameters.from_peft(values, factors.batch[0])
            self.spelled[f"{module}.{name}"] = f"{self.spelled[module]}.{name}"
            for kind, (key, _) in pair.items():
                self.keys[f"{module}.{name}", kind] = key
            rank, said = self.raw[module, name]["lora_A.weight"].shape[1], self._local(f"{module}.{name}", "r")
            if rank != said:
                raise ValueError(f"{key} has the rank {rank}, but adapter_config.json says {said}.")
        return {key for pair in found.values() for key, _ in pair.values()}

    def _parameters_of(self, module: str) -> dict[str, Factors]:
        """Returns the tensors of a module that `target_parameters` can name, as matrices."""
        ports = [p for p in self.names.by_module[module] if p.record is not None and p.parameter != "weight"]
        kernels = {p.parameter: p for p in ports if len(p.variable.shape) == 3}
        return {name: self.names.factors(p, parameter_site(p.layer, p.attr)) for name, p in kernels.items()}

    def _take(self, key: str, value: Array) -> bool:
        """Returns whether the tensor has a place, and keeps it."""
        name = _bare(key)
        if name == PROMPT:
            self.weights[PROMPT] = {PROMPT: value}
            self.keys[PROMPT, PROMPT] = key
            return True
        if (common := name.rpartition(".")[2]) in self.common:
            if common in self.shared and not np.array_equal(self.shared[common], value):
                raise ValueError(f"{key} and {self.keys['', common]} differ, though all modules have it in common.")
            self.shared[common], self.keys["", common] = value, key
            return True
        for spelled in self.declared:
            outer = name.removesuffix(f".{spelled}")
            if outer != name and (module := self.names.find(outer)) is not None:
                self._keep(self.weights, module, spelled, outer, key, value)
                return True
        if (found := _KEY.fullmatch(name)) is not None:
            module = self.names.find(found[1])
            spelled = f"{found[2]}.weight" if found[2] in ("lora_A", "lora_B") else found[2]
            if module is not None:
                self._keep(self.weights, module, spelled, found[1], key, value)
            return module is not None
        name, _, parameter = name.rpartition(".")
        plain = re.sub(r"(\.token_adapter)?\.(base_layer|ln_tuning_layers|modules_to_save)$", "", name)
        module = self.names.find(plain)
        if module is None or all(p.parameter != parameter for p in self.names.by_module[module]):
            return False
        if name.endswith(".base_layer") and parameter != "bias":
            self._check_unchanged(module, parameter, key, value)
        else:
            self._keep(self.copies, module, parameter, plain, key, value)
        return True

    def _keep(
        self, into: dict[str, dict[str, Array]], module: str, name: str, spelled: str, key: str, value: Array
    ) -> None:
        if (module, name) in self.keys:
            raise ValueError(f"{key} and {self.keys[module, name]} are the same tensor of the model.")
        into.setdefault(module, {})[name] = value
        self.keys[module, name] = key
        self.spelled.setdefault(module, spelled)

    def _check_unchanged(self, module: str, parameter: str, key: str, value: Array) -> None:
        """Raises ValueError if the file holds another embedding than the model's; peft writes it beside its adapter."""
        for port in self.names.by_module[module]:
            if port.parameter != parameter:
                continue
            place = self.names.placement(port)
            if value.shape != place.shape or not np.allclose(place.take(value), base_value(port), 1e-2, 1e-5):
                raise ValueError(
                    f"{key}, of shape {value.shape}, is not the weight that the model has at {port.path}, of shape "
                    f"{place.shape}. The adapter was trained on another base, perhaps with more tokens."
                )

    # ------------------------------------------------------------------------------------------- the adapter

    def adapter(self) -> tuple[Adapter, dict[str, dict[str, Any]] | None]:
        """Returns the adapter that the file describes, on Keras paths, and its arguments by path."""
        method, config = self.method, self.config
        fields = method.fields
        if (PROMPT, PROMPT) not in self.keys:
            check_named(config, list(self.spelled.values()))
        taken = {*_SELECTION, *_BY_PATH, *method.patterned, *method.fixed, "peft_type", "method"}
        options = {k: v for k, v in arguments(config, method).items() if k not in taken}
        options["extra"] = {k: v for k, v in config.items() if k not in fields and k not in taken}
        whole = [module for module in self.copies if self._is_whole(module)]
        options["modules_to_save"] = sorted(p for m in whole for p in self._paths(m)) or None
        if (PROMPT, PROMPT) in self.keys:
            if self.prompted is not None:
                if (module := self.names.find(self.prompted)) is None:
                    raise ValueError(
                        f"The prompt belongs to the module {self.prompted!r}, which the model does not have. Closest "
                        f"names: {self.names.nearest(self.prompted)}."
                    )
                options["target_modules"] = self._paths(module)
            return method(**options), None
        adapted = self.weights or {m: t for m, t in self.copies.items() if m not in whole and not self.raw}
        paths = {module: self._paths(module, bool(self.weights)) for module in adapted}
        targets: dict[str, dict[str, Any]] = {path: {} for module in paths for path in paths[module]}
        tokens = {module: self._tokens(module) for module in adapted if TOKENS_BESIDE in self.weights.get(module, {})}
        by_path = {path: own for module, own in tokens.items() for path in paths[module]}
        adapted = {module: own for module, own in adapted.items() if module not in tokens}
        options["target_modules"] = sorted(targets.keys() - by_path.keys()) or None
        if by_path:
            options["trainable_token_indices"] = by_path
        for pattern, field in method.patterned.items():
            for module in adapted:
                for path in paths[module]:
                    targets[path][field] = self._local(module, field)
            usual, kernels = options.get(field, fields[field].default), targets.keys() - by_path.keys()
            differ = any(targets[path][field] != usual for path in kernels)
            options[pattern] = {re.escape(p): targets[p][field] for p in targets if p in kernels} if differ else {}
        if self.raw:
            self._select_parameters(method, options, targets)
        if "feedforward_modules" in fields:
            inner = [path for module in adapted if self._is_inner(module) for path in paths[module]]
            options["feedforward_modules"] = sorted(inner) or None
        return method(**options), targets

    def _tokens(self, module: str) -> list[int]:
        """Returns the numbers of the tokens that the file has rows of at an embedding."""
        given, spelled = self.config["trainable_token_indices"], self.spelled[module]
        own = next((v for k, v in given.items() if is_called(k, spelled)), None) if isinstance(given, dict) else given
        if own is None:
            raise ValueError(
                f"{self.keys[module, TOKENS_BESIDE]} has rows of tokens whose numbers the file does not say: its "
                f"trainable_token_indices names {', '.join(map(repr, given))}."
            )
        return list(own)

    def _select_parameters(
        self, method: type[Adapter], options: dict[str, Any], targets: dict[str, dict[str, Any]]
    ) -> None:
        """Adds the parameters to an adapter's arguments. Those of one layer get one rank there, the largest."""
        ranks: dict[str, tuple[int, float]] = {}
        paths = []
        for (module, name), tensors in self.raw.items():
            scaling = self._scaling(module, name)
            for port in self.names.by_module[module]:
                if port.parameter == name:
                    rank, factor = ranks.get(port.path, (0, scaling))
                    ranks[port.path] = max(rank, tensors["lora_A.weight"].shape[1]), factor
                    paths.append(f"{port.path}.{port.attr}")
        options["target_parameters"] = sorted(paths)
        targets.update({path: {} for path in paths})
        rs = bool(self.config.get("use_rslora"))
        alphas = {path: raw_parameters.alpha_of(factor, rank, rs) for path, (rank, factor) in ranks.items()}
        options["rank_pattern"] |= {re.escape(path): rank for path, (rank, _) in ranks.items()}
        options["alpha_pattern"] |= {re.escape(path): alpha for path, alpha in alphas.items()}

    def _scaling(self, module: str, name: str) -> float:
        """Returns the factor s that the file gives to a parameter."""
        rank, alpha = (self._local(f"{module}.{name}", field) for field in ("r", "lora_alpha"))
        return raw_parameters.scaling_of(alpha, rank, bool(self.config.get("use_rslora")))

    def _paths(self, module: str, kernels: bool = False) -> list[str]:
        ports = self.names.by_module[module]
        return list(dict.fromkeys(p.path for p in ports if not kernels or p.site is not None))

    def _is_whole(self, module: str) -> bool:
        return matches(self.config.get("modules_to_save"), self.spelled[module])

    def _is_left_out(self, module: str) -> bool:
        """Returns whether a file need not have a module of a layer that it trains whole: it may train another one."""
        return module not in self.copies and not matches(self.config.get("modules_to_save"), module)

    def _is_inner(self, module: str) -> bool:
        spec = self.config.get("feedforward_modules") or ()
        if isinstance(spec, str):
            return matches_whole(spec, self.spelled[module])
        return any(self.spelled[module].endswith(name) for name in spec)

    def _local(self, module: str, field: str) -> Any:
        pattern = next(pattern for pattern, name in self.method.patterned.items() if name == field)
        usual = self.config.get(field) or self.method.fields[field].default
        return by_pattern(self.config.get(pattern) or {}, self.spelled[module], usual)

    # -------------------------------------------------------------------------------------------- the values

    def values(self, plans: Mapping[str, Plan]) -> dict[str, dict[str, Array]]:
        """Returns the values of the adapter's variables by path: weights by name and copies by attribute.

        Raises:
            ValueError: a tensor is missing, unexpected, or of another shape.
        """
        found: dict[str, dict[str, Array]] = {}
        missing: list[str] = []
        wrong: list[str] = []
        used: set[tuple[str, str]] = set()
        prefixes = self._prefixes(plans, missing, used)
        for path, step in plans.items():
            found[path] = {"prefix": prefixes[path]} if path in prefixes else {}
            if step.targeted:
                self._weights_at(path, step, found[path], missing, wrong, used)
            for attr in step.parameters:
                found[path] |= self._parameter_at(path, attr, step.adapter, missing, used)
            for attr, variable in own_variables(step.layer).items():
                if not step.whole and not step.adapter.trains(variable.name, step.targeted):
                    continue
                port = self.names.ports[path, attr]
                used.add((port.module, port.parameter))
                tensor, place = self.copies.get(port.module, {}).get(port.parameter), self.names.placement(port)
                if tensor is None and step.whole and self._is_left_out(port.module):
                    found[path][attr] = base_value(port)
                elif tensor is None:
                    missing.append(f"{self.spelled.get(port.module, port.module)}.{port.parameter}")
                elif tensor.shape != place.shape:
                    wrong.append(
                        f"{self.keys[port.module, port.parameter]} has shape {tensor.shape}, but {path} takes "
                        f"{place.shape}"
                    )
                else:
                    found[path][attr] = place.take(tensor)
        unexpected = [key for entry, key in self.keys.items() if entry not in used]
        problems = [f"{wrong[0]}" + (f" ({len(wrong)} such tensors)" if len(wrong) > 1 else "")] if wrong else []
        if missing:
            problems.append(f"{len(missing)} missing tensor(s): {', '.join(missing[:3])}")
        if unexpected:
            problems.append(f"{len(unexpected)} unexpected tensor(s): {', '.join(unexpected[:3])}")
        if problems:
            raise ValueError(f"The adapter does not fit the model: {'; '.join(problems)}.")
        return found

    def _prefixes(self, plans: Mapping[str, Plan], missing: list[str], used: set[tuple[str, str]]) -> dict[str, Array]:
        """Returns the prefixes of attention layers by path, if these have any."""
        steps = [(path, plans[path]) for path in self.names.paths if path in plans and plans[path].targeted]
        sites = {path: site_of(step.layer) for path, step in steps}
        spots = {path: s for path, s in sites.items() if isinstance(s, Spot) and s.kind == "attention"}
        if not spots or PROMPT not in self.weights:
            missing += [PROMPT] if spots else []
            return {}
        used.add((PROMPT, PROMPT))
        tokens = plans[next(iter(spots))].adapter.get_config()["num_virtual_tokens"]
        return torch_layout.split_prefix(self.weights[PROMPT][PROMPT], self.config, spots, tokens)

    def _parameter_at(
        self, path: str, attr: str, adapter: Adapter, missing: list[str], used: set[tuple[str, str]]
    ) -> dict[str, Array]:
        """Returns the weights of one of `target_parameters` as its layer names them."""
        assert isinstance(adapter, LoRA)
        port, site = self.names.ports[path, attr], parameter_site(self.names.paths[path], attr)
        entry = (port.module, port.parameter)
        tensors = raw_parameters.with_rank(self.raw[entry], self._scaling(*entry), adapter)
        used |= {(".".join(entry), kind) for kind in tensors}
        values, absent, _ = torch_layout.divide(tensors, site, self.names.factors(port, site), adapter, path)
        missing += [f"{self.spelled['.'.join(entry)]}.{name}" for name in absent]
        return {f"{attr}.{name}": value for name, value in values.items()}

    def _weights_at(
        self,
        path: str,
        step: Plan,
        found: dict[str, Array],
        missing: list[str],
        wrong: list[str],
        used: set[tuple[str, str]],
    ) -> None:
        site = site_of(step.layer)
        if site is None or not site.has_kernel or not step.adapter.weights(site):
            return
        port = self.names.ports[path, site.attr]
        module = PROMPT if (PROMPT, PROMPT) in self.keys else port.module
        tensors = self.weights.get(module, {})
        place = self.names.factors(port, site)
        values, absent, misshapen = torch_layout.divide(tensors, site, place, step.adapter, path)
        used |= {(module, name) for name in tensors if name in torch_layout.spelled(step.adapter, site)}
        found |= values
        missing += [f"{self.spelled.get(module, module)}.{name}" for name in absent]
        for name, weight in torch_layout.shared(step.adapter, site).items():
            if name not in self.shared:
                missing.append(name)
            elif self.shared[name].shape != weight.axes[::-1]:
                wrong.append(f"{name} has shape {self.shared[name].shape}, but the model takes {weight.axes[::-1]}")
            else:
                found[name] = self.shared[name].transpose()
            used.add(("", name))
        for name, shape in misshapen.items():
            wrong.append(f"{self.keys[module, name]} has shape {tensors[name].shape}, but {path} takes {shape}")


def _bare(key: str) -> str:
    return key.removeprefix("base_model.").removeprefix("model.")
