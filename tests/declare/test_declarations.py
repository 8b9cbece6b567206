"""Classes of users: arguments declared by annotation, errors that name class and argument, help, repr, config."""

from __future__ import annotations  # every annotation here is text

import inspect
import json
import pydoc
import re
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

import keras
import numpy as np
import pytest
from problems import one_step, rules
from registry import one_of_each

import kopt
from kopt import Count, Fraction, Range, peft, schedules
from kopt.declare.described import own_arguments
from kopt.declare.registry import ADAPTERS, OPTIMIZERS, SCHEDULES


@pytest.fixture(autouse=True)
def _own_classes_are_forgotten():
    """Other tests look at all that is registered."""
    kept = [(r, dict(r._classes)) for r in (OPTIMIZERS, SCHEDULES, ADAPTERS)]
    yield
    for registry, classes in kept:
        registry._classes.clear()
        registry._classes.update(classes)


def declare(base=kopt.Optimizer, annotations=None, **members):
    """Returns a class whose body has these annotations and members."""
    body = {"__module__": "mine", "__annotations__": annotations or {}, **members}
    return type("Mine", (base,), body)


# ------------------------------------------------------------------------------------------------------- annotations


class Kinds(kopt.Optimizer):
    """Every kind of argument.

    Args:
        beta: a number.
        number: another.
    """

    beta: Fraction = np.float32(0.5)
    number: float = 1
    count: int = np.int64(3)
    flag: bool = np.bool_(True)
    text: str = np.str_("abc")
    level: Literal[1, 2, "top"] = 1
    nothing: Count = None
    maybe: Optional[Count] = None  # noqa: UP045
    either: Union[Literal["auto"], Count] = "auto"  # noqa: UP007
    fixed: ClassVar[float] = 3.0
    bare: ClassVar = 4.0
    _hidden: float = 2.0


OWN = ["beta", "number", "count", "flag", "text", "level", "nothing", "maybe", "either"]


def test_arguments_are_the_annotated_names_in_order():
    parameters = inspect.signature(Kinds).parameters
    inherited = list(inspect.signature(kopt.Optimizer).parameters)
    assert list(parameters) == ["learning_rate", *OWN, *inherited[1:]]
    assert parameters["learning_rate"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {p.kind for name, p in parameters.items() if name != "learning_rate"} == {inspect.Parameter.KEYWORD_ONLY}
    assert Kinds().fixed == 3.0 and "fixed" not in Kinds().get_config()


def test_defaults_are_plain_values():
    defaults = {name: Kinds.fields[name].default for name in OWN}
    expected = [0.5, 1.0, 3, True, "abc", 1, None, None, "auto"]
    assert list(defaults.values()) == expected
    assert [type(x) for x in defaults.values()] == [type(x) for x in expected]
    given = Kinds().get_config()
    assert json.loads(json.dumps(given)) == given


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("beta", np.float64(0.25), 0.25),
        ("beta", np.int64(0), 0.0),
        ("number", 7, 7.0),
        ("count", np.float32(2.0), 2),
        ("count", 4.0, 4),
        ("flag", np.bool_(False), False),
        ("text", np.str_("x"), "x"),
        ("level", np.int64(2), 2),
        ("level", np.str_("top"), "top"),
        ("nothing", np.int32(4), 4),
        ("nothing", None, None),
        ("maybe", 5, 5),
        ("either", np.int64(6), 6),
        ("either", "auto", "auto"),
    ],
)
def test_numpy_scalars_become_plain_values(name, value, plain):
    optimizer = Kinds(**{name: value})
    assert getattr(optimizer, name) == plain and type(getattr(optimizer, name)) is type(plain)
    again = Kinds.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("beta", 1, r"a finite number in \[0, 1\)"),
        ("beta", np.bool_(True), "a finite number"),
        ("beta", np.array(0.5), "a finite number"),
        ("beta", 0.5j, "a finite number"),
        ("number", float("nan"), "a finite number"),
        ("number", float("inf"), "a finite number"),
        pytest.param("number", 10**400, "a finite number", id="huge"),
        ("number", None, "a finite number"),
        ("count", 2.5, "an integer"),
        ("count", True, "an integer"),
        ("flag", 1, "True or False"),
        ("flag", np.int64(1), "True or False"),
        ("text", 3, "a string"),
        ("level", True, "one of 1, 2, 'top'"),
        ("level", 1.0, "one of 1, 2, 'top'"),
        ("level", [1], "one of 1, 2, 'top'"),
        ("nothing", 0, r"an integer in \[1, inf\) or None"),
        ("maybe", 0, r"an integer in \[1, inf\) or None"),
        ("either", "none", r"one of 'auto' or an integer in \[1, inf\)"),
    ],
)
def test_other_values_are_refused_with_class_and_argument(name, value, expected):
    with pytest.raises(ValueError, match=f"^Kinds: {name} must be {expected}.* Received: {name}="):
        Kinds(**{name: value})
    optimizer = Kinds()
    with pytest.raises(ValueError, match=f"Kinds: {name} must be"):
        setattr(optimizer, name, value)


def test_annotations_may_name_what_is_local():
    Small = Annotated[float, Range(0, 0.1)]  # noqa: N806

    class Local(kopt.Optimizer):
        small: Small = 0.05
        other: Small | None = None

    assert Local(small=0.09).small == 0.09
    for name in ("small", "other"):
        with pytest.raises(ValueError, match=rf"Local: {name} must be a finite number in \[0, 0.1\)"):
            Local(**{name: 0.2})

    class Schedule(schedules.WarmupLinear):
        bend: Small = 0.01

    assert Schedule(steps=3, bend=0.02).bend == 0.02


def test_an_annotation_that_cannot_be_read_is_an_error():
    with pytest.raises(TypeError, match=r"Mine.beta: the annotation 'Unheard' cannot be read"):
        declare(annotations={"beta": "Unheard"}, beta=0.1)


# ----------------------------------------------------------------------------------------------- classes upon classes


def test_a_default_changes_without_an_annotation():
    class Second(Kinds):
        beta = 0.75
        learning_rate = 0.1

    class Third(Second):
        more: Fraction = 0.1
        count = 9

    assert (Second().beta, float(Second().learning_rate), Kinds().beta) == (0.75, pytest.approx(0.1), 0.5)
    assert (Third().beta, Third().count, float(Third(0.2).learning_rate)) == (0.75, 9, pytest.approx(0.2))
    assert list(inspect.signature(Third).parameters)[:4] == ["learning_rate", "more", "count", "beta"]
    with pytest.raises(ValueError, match=r"Second: beta must be a finite number in \[0, 1\)"):
        Second(beta=1.5)


def test_a_property_takes_the_place_of_an_argument():
    class Derived(Kinds):
        @property
        def beta(self):
            return self.number / 4

        @beta.setter
        def beta(self, value):
            assert value == Kinds.fields["beta"].default

    assert Derived(number=2).beta == 0.5
    assert Derived.from_config(Derived(number=3).get_config() | {"beta": 0.5}).beta == 0.75


@pytest.mark.parametrize(
    ("base", "annotations", "members", "message"),
    [
        (kopt.Optimizer, {"beta": Fraction}, {"beta": 1.5}, r"Mine: beta must be a finite number in \[0, 1\)"),
        (kopt.Optimizer, {"form": Literal["a"]}, {"form": "b"}, "Mine: form must be one of 'a'"),
        (kopt.Adam, {}, {"beta_1": 1.5}, "Mine: beta_1 must be"),
        (kopt.Adam, {}, {"amsgrad": 1}, "Mine: amsgrad must be True or False"),
        (schedules.WarmupLinear, {}, {"start": -1}, "Mine: start must be"),
        (peft.LoRA, {}, {"r": 0}, r"Mine: r must be an integer in \[1, 65536\]"),
        (kopt.SWA, {}, {"every": 0}, "Mine: every must be"),
    ],
)
def test_a_bad_default_is_an_error_of_the_class(base, annotations, members, message):
    with pytest.raises(ValueError, match=message):
        declare(base, annotations, **members)


@pytest.mark.parametrize(
    "name", ["reset", "anchor", "rule", "build", "apply", "measure", "get_config", "iterations", "variables", "decay"]
)
def test_an_argument_cannot_have_the_name_of_a_method(name):
    with pytest.raises(TypeError, match=f"Mine: .* has {name!r} already. Give the argument another name"):
        declare(annotations={name: float}, **{name: 0.5})


@pytest.mark.parametrize(
    "name", ["fields", "leading", "built", "setup", "gradient_norm", "nonfinite_steps", "clipped_steps"]
)
def test_an_argument_cannot_have_the_name_of_what_an_optimizer_keeps(name):
    with pytest.raises(TypeError, match=f"Mine: .* has {name!r} already. Give the argument another name"):
        declare(annotations={name: float}, **{name: 0.5})


# -------------------------------------------------------------------------------------------------- help, repr, config


PUBLIC = [
    *rules().values(),
    kopt.Optimizer,
    *(cls for registry in (SCHEDULES, ADAPTERS) for cls in registry.classes().values() if cls.__name__[0] != "_"),
    *(kopt.SWA, kopt.EMA, kopt.TailAverage, kopt.AveragedWeights, kopt.SAM, kopt.ASAM, kopt.LookSAM, kopt.Curvature),
    *(kopt.LossScaleOptimizer, kopt.tensorboard.OptimizerStats),
]


@pytest.mark.parametrize("cls", [cls for cls in PUBLIC if cls.__module__.startswith("kopt.")], ids=lambda c: c.__name__)
def test_help_describes_every_argument(cls):
    shown = pydoc.plain(pydoc.render_doc(cls))
    described = own_arguments(inspect.getdoc(cls))
    names = cls.fields if hasattr(cls, "train_step") else inspect.signature(cls).parameters
    for name in names:
        if name != "options":  # of the class of Keras, which takes none
            assert described[name].strip(" ."), name
            assert re.search(rf"^ \|\s+(\w+, )*{name}(, \w+)*: \S", shown, re.MULTILINE), name


def test_help_shows_the_arguments_of_ones_own_class():
    described = own_arguments(inspect.getdoc(Kinds))
    assert described["beta"] == "a number." and described["learning_rate"].startswith("η")
    assert "Kinds(learning_rate=0.001, *, beta=0.5, number=1.0" in pydoc.plain(pydoc.render_doc(Kinds))


SCHEDULE = schedules.WarmupCosine(2e-3, steps=10, warmup=2)
OBJECTS = {
    "Adam": lambda: kopt.Adam(0.01, beta_1=0.8, decay_mask=[("bias$", 0)]),
    "AdamW": lambda: kopt.AdamW(SCHEDULE),
    "None": lambda: kopt.AdamW(weight_decay=None),
    "decay": lambda: kopt.Adam(0.1, weight_decay=SCHEDULE),
    "Keras": lambda: kopt.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)),
    "Lion": lambda: kopt.Lion(state_dtype="int8", use_ema=True),
    "BGD": lambda: kopt.BGD(examples=10, batch_size=5),
    "Lookahead": lambda: kopt.Lookahead(kopt.AdamW(1e-3, weight_decay=0.1), k=7),
    "Cautious": lambda: kopt.Cautious(kopt.Lion(SCHEDULE)),
    "ScheduleFree": lambda: kopt.ScheduleFree("sgd", beta_1=0.5),
    "twice": lambda: kopt.Lookahead(kopt.Cautious("adam"), alpha=0.25),
    "wrapped": lambda: kopt.Cautious("lion", clipnorm=1.0, learning_rate=SCHEDULE),
    "Route": lambda: kopt.Route([("bias$", kopt.SGD(0.1)), ("", "adamw")]),
    "routed": lambda: kopt.Route([("", "adamw")], clipnorm=1.0),
    "Switch": lambda: kopt.Switch(kopt.Adam(SCHEDULE), second="sgd", after=3),
    "switched": lambda: kopt.Switch("adam", learning_rate=0.5, use_ema=True),
    "schedule": lambda: SCHEDULE,
    "SWA": lambda: kopt.SWA(3, every=2),
    "EMA": lambda: kopt.EMA(0.9, keep=True),
    "TailAverage": lambda: kopt.TailAverage(0.5, steps=100),
    "LoRA": lambda: peft.LoRA(r=4, target_modules=["a"], rank_pattern={"q": 2}),
}
NAMES = {**vars(keras.optimizers.schedules), **vars(peft), **vars(schedules), **vars(kopt)}


def config(thing):
    """Returns a configuration without the names of optimizers, which are counted."""

    def nameless(x):
        if isinstance(x, dict):
            return {k: nameless(v) for k, v in x.items() if k != "name"}
        return [nameless(v) for v in x] if isinstance(x, list) else x

    return nameless(json.loads(json.dumps(thing.get_config())))


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_repr_is_code(make):
    thing = make()
    again = eval(repr(thing), dict(NAMES))
    assert type(again) is type(thing) and config(again) == config(thing)
    assert repr(again) == repr(thing)


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_a_configuration_goes_round(make):
    thing = make()
    given = thing.get_config()
    before = json.dumps(given)
    again = type(thing).from_config(given) if hasattr(thing, "from_config") else type(thing)(**given)
    assert json.dumps(given) == before  # it belongs to the caller
    assert config(again) == config(thing)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.Adam(0.1, 0.9), TypeError, r"Adam takes one argument.*learning_rate.*write beta_1=0.9"),
        (lambda: kopt.Adam(0.1, 0.9, 0.99), TypeError, r"write beta_1=0.9, beta_2=0.99"),
        (lambda: kopt.Adam(0.1, learning_rate=0.1), TypeError, "got learning_rate twice"),
        (lambda: peft.LoRA(4), TypeError, "LoRA takes no argument by position: write r=4"),
        (lambda: kopt.EMA(0.9, 3), TypeError, "EMA takes one argument.*write every=3"),
        (lambda: kopt.Lookahead("adam", 5), TypeError, "Lookahead takes one argument.*write k=5"),
        (lambda: kopt.Adam(lr=0.1), ValueError, "Adam has no argument 'lr'. Here it is called learning_rate"),
        (lambda: kopt.Adam(betas=(0.9, 0.9)), ValueError, "Here it is called beta_1 and beta_2"),
        (lambda: kopt.Adam(eps=1e-3), ValueError, "Here it is called epsilon"),
        (lambda: kopt.Adam(momentum=0.9), ValueError, "Here it is called beta_1"),
        (lambda: kopt.SGD(momentum=0.9), ValueError, "That is kopt.Momentum here"),
        (lambda: peft.LoRA(rank=4), ValueError, "LoRA has no argument 'rank'. Here it is called r"),
        (lambda: schedules.OneCycle(max_lr=1, steps=3), ValueError, "Here it is called peak_learning_rate"),
        (lambda: schedules.WarmupLinear(1e-3), ValueError, "WarmupLinear needs steps: ≥ 1"),
        (lambda: kopt.SWA(begin=1), ValueError, "SWA has no argument 'begin'"),
        (lambda: kopt.minimize(None, tolerance=-1), ValueError, r"minimize: tolerance must be a finite number in \[0"),
        (lambda: kopt.minimize(None, max_evaluations=2.5), ValueError, "minimize: max_evaluations must be an integer"),
        (lambda: kopt.minimize(None, batch_size=0), ValueError, "minimize: batch_size must be an integer"),
        (lambda: kopt.minimize(None, training=1), ValueError, "minimize: training must be True or False"),
        (lambda: kopt.layerwise_decay(None, 0), ValueError, r"layerwise_decay: rate must be .* \(0, 1\]"),
        (lambda: kopt.layerwise_decay(None, rate=1.5), ValueError, "Received: rate=1.5"),
        (lambda: peft.lora_plus(0.5), ValueError, r"lora_plus: ratio must be a finite number in \[1, inf\)"),
        (lambda: peft.lora_plus("16"), ValueError, "lora_plus: ratio must be"),
    ],
)
def test_errors_say_what_to_write(make, error, message):
    with pytest.raises(error, match=message):
        make()


@one_of_each
def test_every_rule_knows_its_arguments(name):
    with pytest.raises(ValueError, match=f"^{name} has no argument 'unheard_of'. It takes "):
        rules()[name](unheard_of=1)


def test_a_class_of_ones_own_trains():
    class Signs(kopt.Optimizer):
        beta: Fraction = 0.5
        slots: Any = {"m": kopt.Slot()}

        def rule(self, g, w, s, t):
            m = self.beta * s.m + (1 - self.beta) * g
            return m, {"m": m}

    np.testing.assert_allclose(one_step(Signs(1.0, beta=0.75), np.ones(2), np.ones(2)), 0.75)
