"""A host: a layer that reads its weights through adapters.

The layer stays the object that the model was built with. Two things happen to it:

- It gets one child layer, the `AdapterLayer`, which holds every variable of the adapters. The host's own variables,
  their order and their keys in files stay as they are.
- Its class becomes a subclass of the same name. While the model is being called, the host's weights read as what the
  adapters make of them; otherwise they read as themselves.

Keras' own `call` of the layer does the computing, and asks for `self.kernel`. What it gets depends on who is asking:

    model(x)
      host(x)                                     kernels in use: []
        LoRA.forward: base(x) + s (x A) B
          host.call(x) of Keras                   [None]      self.kernel is the host's own, self.activation is None
        Adapter.forward: base.with_kernel(x, K)
          host.call(x) of Keras                   [K]         self.kernel is K, self.activation is None
        the activation, once, after all adapters  []
      another layer reads host.kernel,            []          the kernel with all mergeable adapters applied
        as an output matrix tied to an embedding

These kernels are a stack, `kernels_in_use`, because calls nest: K may come from an adapter above another one.
Each thread has its own, because a strategy calls the same layer in one thread for each replica.
"""

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops
from typing_extensions import override

from kopt.peft.adapter import Adapter, Array, Base, Weights
from kopt.peft.host.creation import create_weights
from kopt.peft.host.host_class import ACTIVATION, host_class
from kopt.peft.host.host_tensors import Bits, Stored, as_kernel, between, dtype_of, stored_tensor, tensor_of
from kopt.peft.host.in_use import kernel_in_use, kernels_in_use, mixed, rows_in_use
from kopt.peft.host.merging import merge_host, unmerge_host
from kopt.peft.host.saving import read_weights, write_weights
from kopt.peft.host.surrounding import surrounded
from kopt.peft.layers import (
    Site,
    Spot,
    Tensor,
    attach,
    detach,
    find_place,
    holder_of,
    in_forward_pass,
    is_trainable,
    original_class,
    own_variables,
    parameter_site,
    set_class,
    strategy_of,
    track,
    unlocked,
    untrack,
)


class AdapterLayer(keras.layers.Layer):
    """The child of a host that owns the variables of its adapters and computes with them.

    Args:
        layer: the host.
        path: its path in the model.
    """

    host_path: str
    """Where the host is in the model; `path` is Keras' own name for where a variable is."""
    host: Callable[[], Any]
    """Returns the host."""
    site: Site | None
    """The kernel that the host itself applies; a `Spot` where it has none and is surrounded."""
    sites: dict[str, Site]
    """All adapted kernels by attribute: beside `site` those that the host's `call` only reads."""
    owned: dict[str, keras.Variable]
    """The variables that the host itself created to be trained, by attribute."""
    adapters: dict[str, Adapter]
    """The methods by name, with the arguments that hold here."""
    weights_of: dict[str, dict[str, keras.Variable]]
    """Weights beside the kernels, by adapter and name; those of other kernels than `site` as "attribute.name"."""
    copies: dict[str, dict[str, keras.Variable]]
    """Trained copies of own variables, by adapter and attribute."""
    borrowed: dict[str, set[str]]
    """Names of weights that another host has too, and saves, by adapter."""
    gates: dict[str, keras.Variable]
    """1.0 while an adapter is on and 0.0 while it is off, by adapter; the same variable in all hosts of a model."""
    given: dict[str, tuple[bool, bool, tuple[str, ...]]]
    """What `add` was told of each adapter: `targeted`, `whole` and `parameters`."""
    active: list[str]
    trained: list[str]
    merged: dict[str, float]
    """The adapters that the host's own variables contain, each with its scale."""
    replaced: dict[str, Bits]
    """What merging replaced, bit for bit, by attribute."""

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(name="adapters", dtype="float32")
        self.built = True
        state: dict[str, Any] = {
            "host_path": path,
            "host": weakref.ref(layer),  # no attribute of it may be the host: Keras would save in a circle
            "sites": {},
            "adapters": {},
            "weights_of": {},
            "copies": {},
            "borrowed": {},
            "gates": {},
            "given": {},
            "active": [],
            "trained": [],
            "merged": {},
            "replaced": {},
        }
        self.__dict__.update(state)  # past Keras' tracking, which would take the host and its variables for children
        attach(layer, self, self._look_at(layer))

    def _look_at(self, layer: Any) -> type:
        """Takes the kernel and the variables of the host as they are now, and returns the class that it needs."""
        site = find_place(layer)
        self.__dict__.update(site=site, owned=own_variables(layer))
        if site is not None:
            self.sites[site.attr] = site
        read = {*self.owned, *({ACTIVATION} if ACTIVATION in holder_of(layer, ACTIVATION) else ())}
        kernel = site.variable.name if site is not None and site.is_quantized else None
        return host_class(original_class(layer), frozenset(read), kernel, isinstance(site, Spot) and site.extensible)

    def look_again(self) -> None:
        """Goes on with the kernel that the host has now, of the same shape, after it was dequantized."""
        set_class(self.host(), self._look_at(self.host()))

    # ------------------------------------------------------------------------------------------ variables

    def add(
        self,
        name: str,
        adapter: Adapter,
        targeted: bool,
        whole: bool,
        rng: np.random.Generator,
        parameters: Sequence[str] = (),
        shared: dict[str, keras.Variable] | None = None,
        gate: keras.Variable | None = None,
        values: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        """Creates the variables of an adapter.

        Args:
            name: name of the adapter.
            adapter: the method, with the arguments that hold here.
            targeted: whether the kernel is adapted.
            whole: whether all own variables are trained, as copies.
            rng: source of the initial values.
            parameters: attributes with other kernels that are adapted.
            shared: the weights that hosts share; those that are not there yet are added.
            gate: the gate that the adapter has in other hosts.
            values: the weights and copies that start from given values, by key; the others start as the method says.
        """
        shared = {} if shared is None else shared
        own = self.owned if whole else {a: v for a, v in self.owned.items() if adapter.trains(v.name, targeted)}
        with unlocked(self), strategy_of(self.host().weights[0]):
            self.gates[name] = self.create_variable(name, "gate", np.zeros(()), False) if gate is None else gate
            if gate is not None:
                track(self, gate)
            self.copies[name] = {
                a: self.create_variable(name, v.name, values[a] if a in values else v.numpy()) for a, v in own.items()
            }
            self.weights_of[name], self.borrowed[name] = {}, set()
            for attr in parameters:
                self.sites.setdefault(attr, parameter_site(self.host(), attr))
            for attr in [*([self.site.attr] if targeted and self.site is not None else []), *parameters]:
                create_weights(self, name, adapter, self.sites[attr], rng, shared, values)
            if rate := getattr(adapter, "dropout", 0.0):
                setattr(self, f"{name}_dropout", keras.layers.Dropout(rate, dtype=self.host().compute_dtype))
        self.adapters[name], self.given[name] = adapter, (targeted, whole, tuple(parameters))

    def key(self, site: Site, key: str) -> str:
        """Returns the name here of the weight that a method calls `key` at a kernel."""
        return key if site is self.site else f"{site.attr}.{key}"

    def weights_at(self, name: str, site: Site | None) -> dict[str, keras.Variable]:
        """Returns the weights of an adapter at one kernel of the host, as its method names them."""
        start = "" if site is None else self.key(site, "")
        own = self.weights_of.get(name, {})
        return {k.removeprefix(start): v for k, v in own.items() if k.rpartition(".")[0] == start[:-1]}

    def kernels_of(self, name: str) -> list[str]:
        """Returns the paths of the kernels that an adapter changes; all but the host's end in an attribute."""
        return [self.path_of(site) for site in self.sites.values() if self.weights_at(name, site)]

    def path_of(self, site: Site) -> str:
        """Returns the path of a kernel of the host."""
        return self.host_path if site is self.site else f"{self.host_path}.{site.attr}"

    def stored(self, attr: str) -> Stored:
        """Returns the host's own variable, or the quantized kernel in its place."""
        return self.owned[attr] if attr in self.owned else self.sites[attr].variable

    def create_variable(
        self, adapter: str, name: str, value: Array, trainable: bool = True, **options: Any
    ) -> keras.Variable:
        """Creates a weight of an adapter with a value; `options` are those of `add_weight`."""
        start = np.array(value, "float32")  # its own: on JAX and torch the variable may be in the memory of the array
        return self.add_weight(
            name=f"{adapter}_{name.replace('.', '_')}",  # torch takes no points
            shape=value.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(start, dtype),
            dtype="float32",
            trainable=trainable,
            autocast=False,
            **options,
        )

    def remove(self, name: str) -> None:
        """Forgets an adapter."""
        with unlocked(self):
            for variable in self.variables_of(name):
                untrack(self, variable)
            for attr in (f"{name}_{key}" for key in ("dropout", *self.borrowed.get(name, ()))):
                if hasattr(self, attr):
                    delattr(self, attr)
        for table in (self.adapters, self.weights_of, self.copies, self.borrowed, self.gates, self.given):
            table.pop(name, None)
        self.active[:], self.trained[:] = ([n for n in own if n != name] for own in (self.active, self.trained))

    def variables_of(self, name: str) -> list[keras.Variable]:
        """Returns all variables of an adapter here."""
        own = self.weights_of.get(name, {}) | self.copies.get(name, {})
        return [*own.values(), *([self.gates[name]] if name in self.gates else [])]

    def settle(
        self, active: Sequence[str], trained: Collection[str], on: Collection[str], merged: Mapping[str, float]
    ) -> None:
        """Brings the host to a state, from whatever state it is in, but for the gates: those are the model's.

        Args:
            active: the chosen adapters; those that are not here are left out.
            trained: those of them that are trained.
            on: those of them that count now: one without a gate takes part only while it does.
            merged: the adapters that the host's own variables are to contain, in their order, each with its scale.
        """
        wanted = {name: scale for name, scale in merged.items() if name in self.adapters}
        if list(wanted.items()) != list(self.merged.items()):
            unmerge_host(self)
            merge_host(self, wanted)
        here = [name for name in active if name in self.adapters]
        self.active[:] = [name for name in here if self.adapters[name].gated or name in on]
        self.trained[:] = [name for name in here if name in trained]
        self.freeze()

    def freeze(self) -> None:
        """Makes the trained adapters trainable and freezes the rest of the host."""
        for variable in self.owned.values():
            variable.trainable = False
        for name, adapter in self.adapters.items():
            trained = is_trainable(self.host()) and name in self.trained
            for site in self.sites.values():
                weights = self.weights_at(name, site)
                declared = adapter.weights(site) if weights else {}
                for key, variable in weights.items():
                    variable.trainable = trained and declared[key].trainable
            for variable in self.copies[name].values():
                variable.trainable = trained

    @override
    def save_own_variables(self, store: Any) -> None:
        """Writes all weights by name: numbers, as Keras has them, would change with each added or deleted adapter."""
        self.refuse_if_merged()
        write_weights(self._saved(), store)

    @override
    def load_own_variables(self, store: Any) -> None:
        """Reads all weights. A file of the model without adapters has none: they then stay as they are.

        Raises:
            ValueError: some are missing, or they do not have the SHA-256 that was saved with them.
        """
        if store.keys():
            read_weights(self.host_path, self._saved(), store)

    def _saved(self) -> dict[str, keras.Variable]:
        """Returns the variables that are saved, by their names in files."""
        return {f"{name}.{key}": v for name in self.adapters for key, v in self.saved_of(name).items()}

    def saved_of(self, name: str) -> dict[str, keras.Variable]:
        """Returns the weights and copies of an adapter that this host saves, by key."""
        borrowed = self.borrowed[name]
        own = {k: v for k, v in self.weights_of[name].items() if k not in borrowed and not v.overwrite_with_gradient}
        return own | self.copies[name]

    def refuse_if_merged(self) -> None:
        """Raises ValueError while adapters are merged: a file written now would apply them twice, once loaded."""
        if self.merged:
            raise ValueError(
                f"{self.host_path}: its adapters are merged. Call unmerge_adapter or merge_and_unload first."
            )

    @override
    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a kernel with adapters cannot change its type."""
        raise ValueError(
            f"{self.host_path} has adapters, so it cannot be quantized. Call kopt.peft.merge_and_unload(model) or "
            "kopt.peft.unload(model) first."
        )

    # ------------------------------------------------------------------------------------------ computing

    def read(self, attr: str, value: Any) -> Any:
        """Returns what an attribute of the host, which holds `value`, reads as. See the top of this file."""
        if not in_forward_pass():
            return value
        in_use = kernels_in_use(self)
        if attr == ACTIVATION:
            return None if in_use else value
        if (site := self.sites.get(attr)) is None:
            return self._own(attr, value)
        if in_use and site is self.site:
            return self._own(attr, value) if in_use[-1] is None else as_kernel(site, in_use[-1], value)
        chain = [n for n in self.chain(site) if self.adapters[n].mergeable]
        if not chain:
            return self._own(attr, value)
        if rows_in_use():
            raise ValueError(f"{self.host_path}.{attr.lstrip('_')} is read whole, so that rows cannot differ in it.")
        return as_kernel(site, self._base(site, chain, lambda x: x).kernel(), value)

    def _own(self, attr: str, value: Any) -> Any:
        """Returns a variable of the host, or the trained copy in its place."""
        for name, copies in self.copies.items():
            if (copy := copies.get(attr)) is not None:
                value = between(tensor_of(value), ops.cast(copy, dtype_of(value)), tensor_of(self.gates[name]))
        return value

    def chain(self, site: Site) -> list[str]:
        """Returns the adapters of a kernel in the order of their work: those that can be merged come first.

        Adapters that are off take part, multiplied by zero: then switching needs no new trace.
        """
        of_site = [n for n in self.weights_of if self.weights_at(n, site)]
        usable = (n for n in of_site if n in self.active or self.adapters[n].gated)
        return sorted(usable, key=lambda n: not self.adapters[n].mergeable)

    def parameters(self, name: str, site: Site, gate: Tensor | None = None) -> Weights:
        """Returns the weights of an adapter at a kernel for `Adapter.forward` and `Adapter.effective`."""
        values = {key: tensor_of(v) for key, v in self.weights_at(name, site).items()}
        gate = tensor_of(self.gates[name]) if gate is None else gate
        return Weights(values, gate, getattr(self, f"{name}_dropout", lambda x: x))

    def _base(self, site: Site, names: list[str], call: Callable[[Tensor], Tensor], floating: Any = None) -> Base:
        """Returns the host with the adapters `names` applied to a kernel; see `forward`."""

        def run(x: Tensor, kernel: Tensor | None = None) -> Tensor:
            with kernel_in_use(self, kernel):
                return (call if kernel is None or floating is None else floating)(x)

        def kernel() -> Tensor:
            return site.matrix(ops.cast(stored_tensor(self._own(site.attr, site.variable)), "float32"))

        def bias() -> Tensor | None:
            variable = self.owned.get("bias")
            return None if variable is None else site.vector(tensor_of(self._own("bias", variable)))

        base = Base(site, run, run, kernel, bias, linear_in_kernel=not site.is_quantized)
        for name in names:
            base = base.above(self.adapters[name], self.parameters(name, site))
        return base

    def forward(
        self, call: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], floating: Any = None
    ) -> Tensor:
        """Returns the output of the host.

        Args:
            call: how its class computes.
            args: arguments of the call.
            kwargs: those by name.
            floating: how its class computes with a float kernel, if it is quantized; None is `call`.
        """
        if (site := self.site) is not None and not site.has_kernel:
            return surrounded(self, call, args, kwargs)
        if isinstance(self.host(), keras.layers.BatchNormalization):
            kwargs = kwargs | {"training": False}  # the statistics belong to the frozen base
        if site is None or site.kind == "opaque" or not (chain := self.chain(site)):
            return call(*args, **kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("inputs"), ())
        if site.kind == "embedding" and (kwargs.get("reverse") or (rest and rest[0])):  # reads the kernel if it is tied
            return ((getattr(self.host(), "tie_weights", True) and floating) or call)(x, *rest, **kwargs)
        run, floating = ((lambda x, f=f: f(x, *rest, **kwargs)) for f in (call, floating or call))
        base = self._base(site, [] if rows_in_use() else chain, run, floating)
        y = mixed(self, site, base, x) if rows_in_use() else base(x)
        activation = holder_of(self.host(), ACTIVATION).get(ACTIVATION)
        return y if activation is None else activation(y)

    def remove_host(self) -> None:
        """Makes the host a plain layer again."""
        detach(self.host())
