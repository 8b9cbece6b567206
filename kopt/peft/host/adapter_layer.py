"""A host: a layer that reads its weights through adapters.

The layer stays the object that the model was built with. One child layer, the `Bank`, holds every adapter variable, so
that the host's own variables, their order and their keys in files do not change; and the layer's class gives way to a
subclass of the same name, in which attributes read as what the adapters make of them while the model is being called,
and as themselves otherwise.
"""

import collections
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.adapter import Adapter, Array, Base, Weights
from kopt.peft.layers.site import (
    BANK,
    Site,
    Tensor,
    find_site,
    growing,
    hang,
    in_forward_pass,
    original_class,
    own_variables,
    strategy_of,
    unhang,
)

ACTIVATION = "activation"


class Bank(keras.layers.Layer):
    """Owns the adapter variables of one host and computes with them.

    Args:
        layer: the host.
        path: its path in the model.
    """

    place: str
    """Where the host is in the model; `path` is Keras' own name for where a variable is."""
    host: Callable[[], Any]
    """Returns the host."""
    site: Site | None
    owned: dict[str, keras.Variable]
    """The host's own trainable variables by attribute."""
    adapters: dict[str, Adapter]
    weights_of: dict[str, dict[str, keras.Variable]]
    """Weights beside the kernel, by adapter and name."""
    copies: dict[str, dict[str, keras.Variable]]
    """Trained copies of own variables, by adapter and attribute."""
    gates: dict[str, keras.Variable]
    active: list[str]
    kept: list[tuple[str, dict[str, Array]]]
    """What merging replaced: (adapter, own values by attribute), in the order of merging."""

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(name="adapters", dtype="float32")
        self.built = True
        state: dict[str, Any] = {
            "place": path,
            "host": weakref.ref(layer),  # no attribute of it may be the host: Keras would save in a circle
            "site": find_site(layer),
            "owned": own_variables(layer),
            "adapters": {},
            "weights_of": {},
            "copies": {},
            "gates": {},
            "active": [],
            "kept": [],
        }
        self.__dict__.update(state)  # past Keras' tracking, which would take the host and its variables for children
        read = {*self.owned, *({ACTIVATION} if ACTIVATION in vars(layer) else ())}
        hang(layer, self, host_class(original_class(layer), frozenset(read)))

    # ------------------------------------------------------------------------------------------ variables

    def add(self, name: str, adapter: Adapter, targeted: bool, whole: bool, rng: np.random.Generator) -> None:
        """Creates the variables of an adapter.

        Args:
            name: of the adapter.
            adapter: the method, with the arguments that hold here.
            targeted: whether the kernel is adapted.
            whole: whether all own variables are trained, as copies.
            rng: source of the initial values.
        """
        own = self.owned if whole else {a: v for a, v in self.owned.items() if adapter.trains(v.name, targeted)}
        with growing(self), strategy_of(next(iter(self.owned.values()))):
            self.gates[name] = self._variable(name, "gate", np.zeros(()), trainable=False)
            self.copies[name] = {a: self._variable(name, v.name, v.numpy()) for a, v in own.items()}
            self.weights_of[name] = {}
            if targeted and self.site is not None:
                site, declared = self.site, adapter.weights(self.site)
                values = {key: weight.init(rng, weight.shape(site)) for key, weight in declared.items()}
                adapter.start(values, lambda: site.matrix(as_float32(site.variable)), rng)
                for key, weight in declared.items():
                    self.weights_of[name][key] = self._variable(name, key, values[key], weight.trainable)
            rate = getattr(adapter, "dropout", 0.0)
            if rate:
                setattr(self, f"{name}_dropout", keras.layers.Dropout(rate, dtype=self.host().dtype_policy))
        self.adapters[name] = adapter

    def _variable(self, adapter: str, name: str, value: Array, trainable: bool = True) -> keras.Variable:
        variable = self.add_weight(
            name=f"{adapter}_{name}",
            shape=value.shape,
            initializer="zeros",
            dtype="float32",
            trainable=trainable,
            autocast=False,
        )
        variable.assign(value.astype("float32"))
        return variable

    def remove(self, name: str) -> None:
        """Forgets an adapter."""
        with growing(self):
            for variable in self.variables_of(name):
                self._untrack_variable(variable)
            if hasattr(self, f"{name}_dropout"):
                delattr(self, f"{name}_dropout")
        for table in (self.adapters, self.weights_of, self.copies, self.gates):
            table.pop(name, None)
        self.__dict__["active"] = [n for n in self.active if n != name]

    def variables_of(self, name: str) -> list[keras.Variable]:
        """Returns all variables of an adapter here."""
        tables = (self.weights_of.get(name, {}), self.copies.get(name, {}))
        return [v for table in tables for v in table.values()] + ([self.gates[name]] if name in self.gates else [])

    def switch(self, active: list[str], enabled: bool) -> None:
        """Turns adapters on and the others off."""
        self.__dict__["active"] = [name for name in active if name in self.adapters]
        merged = {name for name, _ in self.kept}
        for name, gate in self.gates.items():
            gate.assign(float(enabled and name in self.active and name not in merged))
        self.freeze()

    def freeze(self) -> None:
        """Lets the active adapters learn and nothing else of the host."""
        for variable in self.owned.values():
            variable.trainable = False
        for name, adapter in self.adapters.items():
            learning = self.host()._trainable and name in self.active
            declared = adapter.weights(self.site) if self.site is not None and self.weights_of[name] else {}
            for key, variable in self.weights_of[name].items():
                variable.trainable = learning and declared[key].trainable
            for variable in self.copies[name].values():
                variable.trainable = learning

    def save_own_variables(self, store: Any) -> None:
        """Writes all weights by name: what is positional would move with each adapter that comes or goes."""
        self.refuse_if_merged()
        for name in self.adapters:
            for key, variable in (self.weights_of[name] | self.copies[name]).items():
                store[f"{name}.{key}"] = variable

    def refuse_if_merged(self) -> None:
        """Raises ValueError if a file written now would, once loaded, have an adapter applied twice."""
        if self.kept:
            raise ValueError(f"{self.place}: its adapters are merged. Call unmerge_adapter or merge_and_unload first.")

    def load_own_variables(self, store: Any) -> None:
        """Reads all weights; a file of the plain model has none and leaves them as they are."""
        if not store.keys():
            return
        for name in self.adapters:
            for key, variable in (self.weights_of[name] | self.copies[name]).items():
                variable.assign(store[f"{name}.{key}"])

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises: a kernel with adapters in place cannot change its type."""
        raise ValueError(
            f"{self.place} has adapters, so it cannot be quantized. Call kopt.peft.merge_and_unload(model) or "
            "kopt.peft.unload(model) first."
        )

    # ------------------------------------------------------------------------------------------ computing

    def read(self, attr: str, value: Any) -> Any:
        """Returns what an attribute of the host reads as."""
        if not in_forward_pass():
            return value
        within = _calls(self)
        if attr == ACTIVATION:
            return None if within else value
        if self.site is None or attr != self.site.attr:
            return self._own(attr, value)
        if within:
            return self._own(attr, value) if within[-1] is None else self._as_kernel(within[-1], value)
        chain = [n for n in self._chain() if self.adapters[n].mergeable]
        if not chain:
            return self._own(attr, value)
        return self._as_kernel(self._base(chain, lambda x: x).kernel(), value)

    def _own(self, attr: str, value: Any) -> Any:
        """Returns a variable of the host, or the trained copy in its place."""
        for name, copies in self.copies.items():
            copy = copies.get(attr)
            if copy is not None:
                value = ops.where(self.gates[name] > 0.5, ops.cast(copy, _dtype(value)), _read(value))
        return value

    def _as_kernel(self, matrix: Tensor, value: Any) -> Tensor:
        assert self.site is not None
        return ops.cast(self.site.kernel(matrix), _dtype(value))

    def _chain(self) -> list[str]:
        """Returns the adapters beside the kernel, those that change it first and those that see activations last.

        Adapters that are off take part, multiplied by zero: then switching needs no new trace.
        """
        names = [n for n in self.weights_of if self.weights_of[n] and (n in self.active or self.adapters[n].gated)]
        return sorted(names, key=lambda n: not self.adapters[n].mergeable)

    def parameters(self, name: str, gate: Tensor | None = None) -> Weights:
        """Returns the weights of an adapter for `Adapter.forward` and `Adapter.effective`."""
        values = {key: _read(v) for key, v in self.weights_of[name].items()}
        dropout = getattr(self, f"{name}_dropout", lambda x: x)
        return Weights(values, _read(self.gates[name]) if gate is None else gate, dropout)

    def _base(self, names: list[str], call: Callable[..., Tensor]) -> Base:
        """Returns the host with the adapters `names` applied."""
        site = self.site
        assert site is not None

        def run(x: Tensor, kernel: Tensor | None = None) -> Tensor:
            _calls(self).append(kernel)
            try:
                return call(x)
            finally:
                _calls(self).pop()

        def kernel() -> Tensor:
            return site.matrix(ops.cast(_master(self._own(site.attr, site.variable)), "float32"))

        def bias() -> Tensor | None:
            variable = self.owned.get("bias")
            return None if variable is None else site.vector(_read(self._own("bias", variable)))

        base = Base(site, run, run, kernel, bias)
        for name in names:
            base = self._above(base, self.adapters[name], self.parameters(name))
        return base

    @staticmethod
    def _above(base: Base, adapter: Adapter, p: Weights) -> Base:
        def bias() -> Tensor | None:
            own = base.bias()
            return None if own is None else adapter.effective_bias(own, p)

        return Base(
            base.site,
            lambda x: adapter.forward(x, base, p),
            base.run,
            lambda: adapter.effective(base.kernel(), p),
            bias,
            beneath=base,
        )

    def forward(self, call: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Returns the output of the host."""
        site = self.site
        if isinstance(self.host(), keras.layers.BatchNormalization):
            kwargs = kwargs | {"training": False}  # the statistics belong to the frozen base
        chain = self._chain() if site is not None and site.kind != "opaque" else []
        if not chain:
            return call(*args, **kwargs)
        assert site is not None
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("inputs"), ())
        if site.kind == "embedding" and (kwargs.get("reverse") or (rest and rest[0])):
            return call(x, *rest, **kwargs)  # reads the effective kernel, if it reads that matrix
        y = self._base(chain, lambda x: call(x, *rest, **kwargs))(x)
        activation = vars(self.host()).get(ACTIVATION)
        return y if activation is None else activation(y)

    # ------------------------------------------------------------------------------------------- merging

    def merge(self, name: str) -> None:
        """Writes what an adapter makes of the host's own variables into them and turns it off."""
        if name not in self.adapters:
            return
        adapter, one = self.adapters[name], ops.ones(())
        new = {attr: copy.numpy() for attr, copy in self.copies[name].items()}
        if self.weights_of[name]:
            assert self.site is not None
            p, site = self.parameters(name, one), self.site
            beneath = ops.convert_to_tensor(site.matrix(as_float32(site.variable)))
            new[site.attr] = site.kernel(ops.convert_to_numpy(adapter.effective(beneath, p)))
            bias = self.owned.get("bias")
            if bias is not None and type(adapter).effective_bias is not Adapter.effective_bias:
                flat = site.vector(ops.convert_to_tensor(as_float32(bias)))
                new["bias"] = site.bias(ops.convert_to_numpy(adapter.effective_bias(flat, p)), bias.shape)
        self.kept.append((name, {attr: self.owned[attr].numpy() for attr in new}))
        for attr, value in new.items():
            self.owned[attr].assign(value)

    def unmerge(self) -> None:
        """Puts every bit back that merging replaced."""
        for _, values in reversed(self.kept):
            for attr, value in values.items():
                self.owned[attr].assign(value)
        self.kept.clear()

    def leave(self) -> None:
        """Makes the host a plain layer again."""
        unhang(self.host())


_running = threading.local()


def _calls(bank: Bank) -> list[Tensor | None]:
    """Returns the kernels that this thread's running calls of a host use; None is its own."""
    if not hasattr(_running, "calls"):
        _running.calls = collections.defaultdict(list)
    calls: list[Tensor | None] = _running.calls[id(bank)]
    return calls


class _Attribute:
    """An attribute of a host that reads as what the adapters make of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type) -> Any:
        if host is None:
            return self
        try:
            value = vars(host)[self.name]
        except KeyError:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}") from None
        bank = vars(host).get(BANK)
        return value if bank is None else bank.read(self.name, value)

    def __set__(self, host: Any, value: Any) -> None:
        vars(host)[self.name] = value


@functools.cache
def host_class(base: Any, attributes: frozenset[str]) -> type:
    """Returns the subclass of `base` for hosts whose own variables are `attributes`.

    It keeps the name and the module: Keras' files contain them.
    """

    class Host(base):
        kopt_original = base

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)  # a clone is a plain layer

        @functools.wraps(base.call)
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return vars(self)[BANK].forward(super().call, args, kwargs)

        @property
        def trainable(self) -> bool:
            return self._trainable

        @trainable.setter
        def trainable(self, value: bool) -> None:
            base.trainable.fset(self, value)
            if BANK in vars(self):  # thawing a whole model must not thaw the base
                vars(self)[BANK].freeze()

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return base.from_config(config)

    Host.__name__, Host.__qualname__, Host.__module__ = base.__name__, base.__qualname__, base.__module__
    for name in attributes:
        setattr(Host, name, _Attribute(name))
    return Host


def as_float32(variable: keras.Variable) -> Array:
    """Returns the value of a variable as float32."""
    return np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))


def _read(value: Any) -> Tensor:
    return ops.convert_to_tensor(value.value) if isinstance(value, keras.Variable) else value


def _master(value: Any) -> Tensor:
    """Returns a variable's value in its own dtype, also inside a layer that computes in another."""
    return ops.convert_to_tensor(value._value) if isinstance(value, keras.Variable) else value


def _dtype(value: Any) -> str:
    return keras.backend.standardize_dtype(_read(value).dtype)
