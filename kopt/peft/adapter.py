"""What an adapter is: extra weights beside a frozen kernel, and what they make of it.

A subclass declares its hyperparameters, names its `weights` and defines `effective`, the kernel that the host has with
them. `forward` is the same function on activations: where a cheaper form than building the kernel exists, a subclass
writes it, and tests hold it to `effective`. Injection, switching, merging, counting and files are done elsewhere, once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Range
from kopt.declare.registry import ADAPTERS
from kopt.peft import targets
from kopt.peft.layers import Site, Tensor
from kopt.peft.peft_fields import FIELDS

Array = np.ndarray[Any, Any]
Initializer = Callable[[np.random.Generator, tuple[int, ...]], Array]
Length = Annotated[int, Range(1, 2**16, closed=True)]
"""A rank or a number of tokens, up to what no model has ever needed: files of strangers cannot ask for all memory."""
Scale = Annotated[float, Range(1e-6, 1e6, closed=True)]
"""A factor that is neither lost in float32 nor more than it holds."""


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Returns zeros."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Returns ones."""
    return np.ones(shape)


def constant(value: float) -> Initializer:
    """Returns an initializer that gives one number."""
    return lambda rng, shape: np.full(shape, value)


def normal(stddev: float) -> Initializer:
    """Returns an initializer that draws from N(0, stddev²)."""
    return lambda rng, shape: rng.normal(0.0, stddev, shape)


def uniform(bound: float) -> Initializer:
    """Returns an initializer that draws from [-bound, bound)."""
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of an adapter at one site.

    Args:
        axes: lengths, as numbers or as "in", "out", "channel" and "window" of the site: "in" is "window" times
            "channel". Files have the axes in the opposite order, and permute "in", "out" and "channel" as the other
            library orders them. A site with batch axes puts those in front.
        init: function of a generator and a shape.
        trainable: whether it is trained.
        in_files: whether adapter files have it; None is whether it is trained.
        shared: whether all layers with an adapter have it in common, as one variable. It has no batch axes.
        as_it_is: whether files have its axes in this order.
        flat: whether files have it as a matrix also for a convolution.
        rest: what it is, in files, where a module is several layers here of which not all are adapted; None if nothing
            stands for that.
        penalty: function of the weight that training adds to the loss.
        overwritten: whether it takes its gradient, at each step, instead of being trained by it: a place to note what
            the backward pass finds. It is no parameter.
    """

    axes: tuple[int | str, ...]
    init: Initializer = zeros
    trainable: bool = True
    in_files: bool | None = None
    shared: bool = False
    as_it_is: bool = False
    flat: bool = False
    rest: float | None = None
    penalty: Callable[[Any], Any] | None = None
    overwritten: bool = False

    @property
    def exchanged(self) -> bool:
        """Whether adapter files have it."""
        return self.trainable and not self.overwritten if self.in_files is None else self.in_files

    def shape(self, site: Site) -> tuple[int, ...]:
        """Returns the shape at a site."""
        return (*(() if self.shared else site.batch), *(site.size(axis) for axis in self.axes))


class Weights:
    """The weights of one adapter at one site as float32 tensors, by name.

    `gate` is 1.0 while the adapter is on and 0.0 while it is off; with 0 a method must give the base. `dropout` drops
    elements of its argument while training.
    """

    def __init__(self, values: Mapping[str, Tensor], gate: Tensor, dropout: Callable[[Tensor], Tensor]) -> None:
        self.gate, self.dropout = gate, dropout
        vars(self).update(values)

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(f"the adapter has no weight {name!r} here")


class Base:
    """What lies beneath an adapter: the layer and the adapters before it.

    Called with the layer's input it gives the output before the activation.

    Args:
        site: the kernel.
        call: function of the input.
        run: function of the input and a kernel [*batch, in, out] that is used instead of the layer's own.
        kernel: function that returns the kernel, [*batch, in, out] in float32.
        bias: function that returns the bias, [*batch, out], or None.
        beneath: what lies below; None for the layer itself.
        linear_in_kernel: whether `run` with the own kernel is what `call` gives. A quantized layer may round its input,
            which `run` does not.
    """

    def __init__(
        self,
        site: Site,
        call: Callable[[Tensor], Tensor],
        run: Callable[[Tensor, Tensor], Tensor],
        kernel: Callable[[], Tensor],
        bias: Callable[[], Tensor | None],
        beneath: "Base | None" = None,
        linear_in_kernel: bool = True,
    ) -> None:
        self.site, self.run, self.kernel, self.bias, self.beneath = site, run, kernel, bias, beneath
        self._call, self._simple = call, linear_in_kernel and beneath is None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns what the layer without its adapter gives."""
        return self._call(x)

    def with_kernel(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Returns the output with another kernel, [*batch, in, out]."""
        if self._simple:
            return self.run(x, kernel)
        # What is beneath need not be linear in the kernel, but the layer's product is: add what the change makes.
        return self(x) + self.linear(x, kernel - self.kernel())

    def linear(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Returns the output with another kernel, [*batch, in, out], and without a bias."""
        return self.run(x, kernel) - self.run(x, ops.zeros_like(kernel))

    def above(self, adapter: "Adapter", p: Weights) -> "Base":
        """Returns what lies beneath the next adapter: this one applied, with its weights p."""

        def bias() -> Tensor | None:
            own = self.bias()
            return None if own is None else adapter.effective_bias(own, p)

        return Base(
            self.site,
            lambda x: adapter.forward(x, self, p),
            self.run,
            lambda: adapter.effective(self.kernel(), p),
            bias,
            beneath=self,
        )


class Adapter(Configurable):
    """Base of all methods.

    Args:
        target_modules: the layers to adapt. A list of names matches a layer whose path ends in one of them, and every
            layer inside it; a string is a regular expression of the whole path; "all-linear" is every `Dense` and
            `EinsumDense`. None takes the usual ones of the method.
        exclude_modules: layers to leave out, as a list or regular expression.
        layers_to_transform: numbers of the blocks to adapt, as 3 in "transformer_layer_3"; None is all.
        layers_pattern: names of the lists of blocks, as ["transformer_layer"]; None takes the first number in a path.
        modules_to_save: names of layers that are trained whole and saved with the adapter, such as a new head.

    Raises:
        ValueError: an argument is unknown or out of range.
    """

    peft_type: ClassVar[str] = ""
    """What `adapter_config.json` calls the method."""
    in_peft: ClassVar[bool] = False
    """Whether Hugging Face peft has a method of that `peft_type`. If not, the file also says the class."""
    fixed: ClassVar[dict[str, Any]] = {}
    """Fields of that file that tell classes of one `peft_type` apart."""
    mergeable: ClassVar[bool] = True
    """Whether `effective` can stand for the method, so that it can be merged into the kernel."""
    gated: ClassVar[bool] = True
    """Whether it is switched by a multiplication; else switching changes shapes, so that the model is traced anew."""
    prepends: ClassVar[bool] = False
    """Whether `prepend` changes the inputs of the whole model, through which text generation does not pass."""
    additive: ClassVar[bool] = False
    """Whether it adds to the kernel what does not depend on the kernel, so that its place among others is free."""
    batched: ClassVar[bool] = True
    """Whether it takes kernels with batch axes."""
    ordered: ClassVar[bool] = False
    """Whether it counts inputs or outputs: a layer that Hugging Face orders otherwise can then not be exchanged."""
    whole_numbers: ClassVar[tuple[str, ...]] = ()
    """Weights that files have as whole numbers."""
    only_in_files: ClassVar[tuple[str, ...]] = ()
    """Entries of a configuration that are no arguments: `unfold` takes them out."""
    patterned: ClassVar[Mapping[str, str]] = {}
    """Arguments that say what another argument is at some paths, each with the name of that argument."""
    selects: ClassVar[tuple[str, ...]] = (
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "extra",
    )
    """Arguments that say where the method goes and how it starts, not what it computes there."""
    kinds: ClassVar[tuple[str, ...]] = ("einsum", "convolution", "embedding", "opaque")
    """Kinds of site that can host it. On opaque ones only `effective` is used."""
    default_targets: ClassVar[tuple[str, ...]] = ()
    """Layers to adapt when none are named."""
    takes: ClassVar[str] = ""
    """The layers that can host it, in words, for errors; "" says `kinds`."""
    elsewhere: ClassVar[Mapping[str, str]] = {
        "targets": "target_modules",
        "modules": "target_modules",
        "exclude": "exclude_modules",
        "layers": "target_modules or layers_to_transform",
        **dict.fromkeys(FIELDS, "an argument of LoraConfig, IA3Config and the other configurations of kopt.peft"),
    }

    target_modules: Annotated[Any, Convert(targets.parse_targets)] = None
    exclude_modules: Annotated[Any, Convert(targets.parse_names)] = None
    layers_to_transform: Annotated[Any, Convert(targets.parse_indices)] = None
    layers_pattern: Annotated[Any, Convert(targets.parse_prefixes)] = None
    modules_to_save: Annotated[Any, Convert(targets.parse_name_list)] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.peft_type:
            ADAPTERS.register(cls, serializable=False)

    def __init__(self, *args: Any, **options: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Mapping):
            raise TypeError(f"{type(self).__name__} takes arguments by name: write **{dict(args[0])}. Received: {args}")
        if len(args) == 1 and isinstance(args[0], (str, list, tuple)):
            raise TypeError(f"{type(self).__name__}: write target_modules={args[0]!r}. Received: {args}")
        self.extra: dict[str, Any] = dict(options.pop("extra", {}))
        """Entries of an `adapter_config.json` that kopt does not use; they are written back as they were read."""
        super().__init__(*args, **options)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return super().get_config() | ({"extra": self.extra} if self.extra else {})

    # ----------------------------------------------------------------------------------------- what a method is

    def weights(self, site: Site) -> dict[str, Weight]:
        """Returns the weights at one site by name. None by default: the method trains copies of own variables only.

        The names are those of the weights p and of the tensors in files: Python names, but for "gate" and "dropout".
        """
        return {}

    def check_fit(self, site: Site) -> None:
        """Raises ValueError if the arguments do not fit a kernel."""

    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Changes the initial `values` where they depend on each other or on the kernel, [*batch, in, out]."""

    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns the kernel with the adapter, [*batch, in, out], from the kernel w without it and the weights p."""
        raise NotImplementedError(f"{type(self).__name__} does not change a kernel")

    def effective_bias(self, b: Tensor, p: Any) -> Tensor:
        """Returns the bias with the adapter, [*batch, out], from the bias b without it."""
        return b

    @property
    def from_data(self) -> bool:
        """Whether the weights start from what `initialize` sees in batches: they have no start of their own."""
        return False

    @property
    def changes_bias(self) -> bool:
        """Whether `effective_bias` gives another bias."""
        return False

    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns the output of the host before its activation; by default it builds the effective kernel."""
        return base.with_kernel(x, self.effective(base.kernel(), p))

    def added(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns what the method adds to the output of the host before its activation."""
        return self.forward(x, base, p) - base(x)

    def surround(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Site, p: Any
    ) -> Any:
        """Returns what a host without a kernel gives for the arguments of its `call`."""
        return call(*args, **kwargs)

    def extend(
        self, key: Tensor, value: Tensor, mask: Tensor | None, site: Site, p: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the projected keys and values of an attention, and their mask, as the method has them."""
        return key, value, mask

    def trains(self, name: str, targeted: bool) -> bool:
        """Returns whether a copy of the host's own variable of that name is trained.

        Args:
            name: name of the variable, as "bias" or "gamma".
            targeted: whether `target_modules` selects the layer.
        """
        return False

    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the method can be used on a layer; one that trains copies needs no kernel."""
        return site is not None and site.kind in self.kinds and (self.batched or not site.batch)

    @property
    def beside(self) -> Sequence[str]:
        """The names of layers that have another method, which `at` gives, whatever `target_modules` says."""
        return ()

    def at(self, path: str) -> "Adapter":
        """Returns the method with the arguments that hold at `path`, or the method that is there in its place."""
        if not any(getattr(self, pattern) for pattern in self.patterned):
            return self
        usual = {pattern: getattr(self, field) for pattern, field in self.patterned.items()}
        local = {
            field: targets.by_pattern(getattr(self, pattern), path, usual[pattern])
            for pattern, field in self.patterned.items()
        }
        return self if [*local.values()] == [*usual.values()] else type(self)(**self.get_config() | local)

    def among(self, sites: Sequence[Site]) -> Self:
        """Returns the method as it is where it goes to the kernels `sites`; for what they have in common."""
        return self

    def fold(self, values: dict[str, Array]) -> dict[str, Array]:
        """Returns the weights that files hold of a layer, from all that it has."""
        return values

    @classmethod
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Returns configuration and tensors of files as the method itself would write them.

        Raises:
            ValueError: they do not go together.
        """
        return config, tensors

    def spell(self, name: str, site: Site) -> str:
        """Returns what adapter files call a weight, after the name of the module."""
        return name

    def check_values(self, values: Mapping[str, Array], site: Site) -> None:
        """Raises ValueError if weights [*batch, *axes] of a file are not those that the method can have."""

    def prepend(self, inputs: Any, vocabulary: int) -> Any:
        """Returns the inputs of the whole model with the virtual tokens of the method in front."""
        return inputs


def is_bias(name: str) -> bool:
    """Returns whether a variable of that name is added to activations: also the shift of a normalization."""
    return name in ("bias", "beta")


def adapters() -> dict[str, type[Adapter]]:
    """Returns the methods by lower-case name, sorted."""
    return ADAPTERS.classes()
