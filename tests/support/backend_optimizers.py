"""Optimizers as cases for every backend: with gradients that are given, and in `fit`."""

from collections.abc import Callable

import keras
import numpy as np
from backend_runs import Case
from keras import ops

import kopt

STEPS = 20


def rules():
    """Returns the rules of kopt that can be made without arguments, by class name."""
    return {cls.__name__: cls for cls in kopt.registry().values() if cls.__module__.startswith("kopt.")}


# ------------------------------------------------------------------------------------------------- what they train


def weights_and_gradients(shapes=((12, 6), (6,), (6, 8), (8,)), seed=0):
    """Returns first weights and the gradients of every step, of several sizes, as float64 arrays."""
    rng = np.random.default_rng(seed)
    weights, scales = [rng.normal(size=s) for s in shapes], [10 ** rng.uniform(-2, 0, s) for s in shapes]
    return weights, [[k * 0.9**t * rng.normal(size=k.shape) for k in scales] for t in range(STEPS)]


def variables(arrays, dtype):
    """Returns variables with the names of layers."""
    names = ("embeddings", "bias", "kernel", "gamma")
    return [keras.Variable(a, dtype=dtype, name=name) for a, name in zip(arrays, names, strict=True)]


def numbers(tensors):
    """Returns tensors as float64 arrays."""
    return [np.asarray(ops.convert_to_numpy(x)).astype("float64") for x in tensors]


def descended(make: Callable, dtype: str = "float32", nan: bool = False) -> list[np.ndarray]:
    """Applies the same gradients on every backend, the fourth of them with a NaN if `nan`; returns the weights."""
    optimizer, (weights, gradients) = make(), weights_and_gradients()
    trained = variables(weights, dtype)
    optimizer.build(trained)
    gradients[3][1][2] = np.nan if nan else gradients[3][1][2]
    for each in gradients:
        scale = float(optimizer.scale_loss(ops.convert_to_tensor(1.0)))
        if getattr(optimizer, "needs_loss", False):  # of a bowl, so that the loss fits the gradient
            moves = [w - 0.5 * first for w, first in zip(numbers(trained), weights, strict=True)]
            optimizer.scale_loss(ops.convert_to_tensor(sum((0.5 * d * d).sum() for d in moves), dtype))
            each = moves
        if hasattr(optimizer, "observe"):
            optimizer.observe(lambda each=each: [ops.convert_to_tensor(100 * g * abs(g), dtype) for g in each])
        optimizer.apply([ops.convert_to_tensor((scale * g).astype("float32"), dtype) for g in each], trained)
    optimizer.finalize_variable_values(trained)
    return numbers(trained)


def network(optimizer, **options):
    """Returns a compiled model whose first weights are the same on every backend."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(12, 6),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(3)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) * (w.ndim > 1) for w in map(np.zeros_like, model.get_weights())])
    model.layers[1].gamma.assign(np.ones(6))
    model.compile(optimizer, "mse", **options)
    return model


def examples():
    """Returns inputs and targets of five batches of 8."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 12, (40, 4))
    return x.astype("int32"), np.sin(x.sum(1, keepdims=True)).astype("float32")


def fitted(make: Callable, batch_size: int = 8, epochs: int = 4, **options) -> list[np.ndarray]:
    """Fits for 20 steps, in the same order on every backend; returns the weights."""
    model = network(make(), **options)
    model.fit(*examples(), batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model.get_weights()


# ------------------------------------------------------------------------------------------------- what is compared

SIGNS = ("Lion", "SignSGD", "Tiger", "Grams", "Cautious", "AdamP", "SGDP", "Rprop")
"""Rules that ask for the sign of something, which the last bit of a gradient may turn."""
EXACT = {"sparse": "exact"}
"""Lazy rows are TensorFlow's."""
STEADY = {"ScheduleFreeSGD": {"learning_rate": 0.1}, "Shampoo": {"damping": 1e-2}}
"""Where the model makes differences grow with the defaults: a large rate, or long steps where gradients are small."""
BASES = "its bases turn with the rounding of a gradient of few directions: first weights 1e-7 apart come to 2e-2"
SEARCH = "differences of gradients make small ones grow"
MOMENTUM = {"learning_rate": 0.02, "momentum": 0.9}


def _rules() -> dict[str, Callable]:
    return {
        name: lambda cls=cls, name=name: cls(**EXACT, **STEADY.get(name, {}))
        for name, cls in rules().items()
        if name not in ("LazyAdam", "Route", "Switch")
    }


WRAPPED = {
    "Lookahead(Momentum)": lambda: kopt.Lookahead(kopt.Momentum(**MOMENTUM, **EXACT), k=3),
    "Lookahead(Prodigy)": lambda: kopt.Lookahead(kopt.Prodigy(**EXACT), k=3),
    "Cautious(Momentum)": lambda: kopt.Cautious(kopt.Momentum(**MOMENTUM, **EXACT)),
    "CautiousDecay(UpdateFloor(Momentum))": lambda: kopt.CautiousDecay(
        kopt.UpdateFloor(kopt.Momentum(**MOMENTUM, **EXACT), by="output", weight_decay=0.1)
    ),
    "EMANesterov(Hyperball(Momentum))": lambda: kopt.EMANesterov(
        kopt.Hyperball(kopt.Momentum(**MOMENTUM, **EXACT)), momentum=0.9
    ),
    "ScheduleFree(RMSprop)": lambda: kopt.ScheduleFree(kopt.RMSprop(**EXACT)),
    "Mechanic(Momentum)": lambda: kopt.Mechanic(kopt.Momentum(**MOMENTUM, **EXACT)),
    "AdaptiveClip(Lookahead(LAMB))": lambda: kopt.AdaptiveClip(kopt.Lookahead(kopt.LAMB(**EXACT), k=2)),
    "GradientCentralization(Adan)": lambda: kopt.GradientCentralization(kopt.Adan(**EXACT)),
    "GradientNoise(Momentum)": lambda: kopt.GradientNoise(kopt.Momentum(**MOMENTUM, **EXACT)),
    "Route": lambda: kopt.Route([("kernel", kopt.Prodigy()), ("", "momentum")], **EXACT),
    "Switch": lambda: kopt.Switch(kopt.Adam(0.01), second=kopt.Momentum(**MOMENTUM), after=7, **EXACT),
    "BGD, step='fixed'": lambda: kopt.BGD(step="fixed", learning_rate=0.05),
    "BGD, step='barzilai_borwein'": lambda: kopt.BGD(step="barzilai_borwein"),
    "LBFGS, line_search='armijo'": lambda: kopt.LBFGS(line_search="armijo", pairs="damped"),
}


def _adamw(**options):
    return lambda: kopt.AdamW(**{"learning_rate": 0.01, "weight_decay": 0.05, **EXACT, **options})


MASKS = {"decay_mask": [(r"bias$|gamma$|beta$", 0.0)], "multipliers": [("embeddings", 0.1)]}
DECAY = keras.optimizers.schedules.CosineDecay
OPTIONS = {
    "clipnorm": _adamw(clipnorm=0.1),
    "clipvalue": _adamw(clipvalue=0.05),
    "global_clipnorm": _adamw(global_clipnorm=0.1),
    "decay_mask, multipliers": _adamw(**MASKS),
    "learning_rate and weight_decay as schedules": lambda: _adamw(
        learning_rate=DECAY(0.02, 15), weight_decay=DECAY(0.1, 15)
    )(),
    "use_ema": _adamw(use_ema=True, ema_momentum=0.8),
    "ema_overwrite_frequency": _adamw(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3),
    "gradient_accumulation_steps": _adamw(gradient_accumulation_steps=3),
    "loss_scale_factor": _adamw(loss_scale_factor=8.0),
    "on_nonfinite='skip'": _adamw(on_nonfinite="skip"),
    "all of these": _adamw(
        **MASKS,
        global_clipnorm=0.1,
        use_ema=True,
        ema_overwrite_frequency=2,
        gradient_accumulation_steps=2,
        loss_scale_factor=4.0,
        on_nonfinite="skip",
    ),
    "kopt.LossScaleOptimizer": lambda: kopt.LossScaleOptimizer(
        _adamw()(), initial_scale=2.0**10, dynamic_growth_steps=3
    ),
    "keras.optimizers.LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(
        _adamw()(), initial_scale=2.0**10, dynamic_growth_steps=3
    ),
}
ROUNDED = {"state_dtype='bfloat16'": {"state_dtype": "bfloat16"}, "state_dtype='int8'": {"state_dtype": "int8"}}
SHORT = {
    f"{dtype} weights, rounding={kind!r}": (dtype, kind)
    for dtype in ("bfloat16", "float16")
    for kind in ("kahan", "stochastic", "nearest")
}


MAKERS = _rules()


def _about(name: str) -> dict:
    return {"counted": True} if any(sign in name for sign in SIGNS) else {}


def _given() -> dict[str, Case]:
    """Returns the cases with gradients that are given."""
    cases = {n: Case(lambda make=make: descended(make), **_about(n)) for n, make in {**MAKERS, **WRAPPED}.items()}
    alone = {name: make for name, make in OPTIONS.items() if not name.startswith("keras")}  # JAX has it in fit alone
    cases |= {name: Case(lambda make=make: descended(make)) for name, make in alone.items()}
    cases |= {
        name: Case(lambda options=options: descended(_adamw(**options)), bound=1e-6, counted=True)
        for name, options in ROUNDED.items()
    }
    cases |= {
        name: Case(lambda dtype=dtype, kind=kind: descended(_adamw(rounding=kind), dtype), counted=True)
        for name, (dtype, kind) in SHORT.items()
    }
    cases["float64 weights"] = Case(
        lambda: descended(_adamw(), "float64"), remark="JAX has float32 instead, without `jax_enable_x64`"
    )
    cases["a NaN, on_nonfinite='skip'"] = Case(lambda: descended(_adamw(on_nonfinite="skip"), nan=True))
    cases["LazyAdam"] = Case(lambda: descended(kopt.LazyAdam), refused=("jax", "torch"))
    return cases


def _in_fit() -> dict[str, Case]:
    """Returns the cases in `fit`."""
    plain = {n: make for n, make in {**MAKERS, **WRAPPED}.items() if not hasattr(make(), "observe")}
    cases = {n: Case(lambda make=make: fitted(make), **_about(n)) for n, make in plain.items()}
    cases |= {name: Case(lambda make=make: fitted(make)) for name, make in OPTIONS.items()}
    for name in ("SOAP", "KLSOAP"):
        cases[name] = Case(lambda name=name: fitted(MAKERS[name]), bound=0.05, remark=BASES)
    whole = {"batch_size": 40, "epochs": 20}
    for name in ("BGD", "LBFGS", *(n for n in WRAPPED if n.startswith(("BGD", "LBFGS")))):
        make = {**MAKERS, **WRAPPED}[name]
        cases[name] = Case(lambda make=make: fitted(make, **whole), bound=1e-5, remark=SEARCH)
    parts = {"examples": 40, "batch_size": 8}
    cases["LBFGS, examples, batch_size"] = Case(lambda: fitted(lambda: kopt.LBFGS(**parts), epochs=20))
    cases["on_nonfinite='raise'"] = Case(
        lambda: fitted(_adamw(on_nonfinite="raise")), refused=("jax",), remark="with `run_eagerly=True` it works"
    )
    return cases


GRADIENTS, FIT = _given(), _in_fit()
