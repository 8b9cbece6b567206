"""What users write; the type checkers find no fault in it (test_typed.py). Nobody runs it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

import kopt
from kopt import Count, Fraction, NonNegative, OpenFraction, Positive, Share, peft
from kopt.peft import Adapter, Base, Weight
from kopt.schedules import REX, Cyclical, OneCycle, WarmupCosine, WarmupLinear, WarmupPolynomial, WarmupStableDecay
from kopt.schedules.schedule import Schedule
from kopt.tensorboard import OptimizerStats

x, y = np.random.rand(256, 8), np.random.rand(256, 1)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])


# -------------------------------------------------------------------------------------------------------- optimizers

model.compile(optimizer=kopt.AdaBound(), loss="mse")
model.fit(x, y, epochs=2)
model.save("model.keras")
named = kopt.get("adabound", final_lr=0.01)
classes: dict[str, type] = kopt.registry()

adam = kopt.Adam(1e-3, beta_1=0.9, beta_2=0.99, epsilon=1e-8, amsgrad=True, name="adam")
adamw = kopt.AdamW(learning_rate=1e-3, weight_decay=None, decay_mask=[(r"bias$|gamma$", 0.0)])
whole = kopt.SGD(1)
masked = kopt.Momentum(0.1, momentum=0.9, multipliers=[(r"head", 10.0)])
careful = kopt.Lion(on_nonfinite="skip", sparse="exact", rounding="stochastic", state_dtype="int8")
clipped = kopt.Lion(1e-4, global_clipnorm=1.0, gradient_accumulation_steps=4)
averaged = kopt.RMSprop(use_ema=True, ema_momentum=0.95, ema_overwrite_frequency=100)
scaled = kopt.LossScaleOptimizer(kopt.AdamW(), initial_scale=2.0**10, dynamic_growth_steps=100, minimum_scale=2.0)
free = kopt.ScheduleFreeAdamW(2.5e-3, beta_1=0.95)
full = kopt.BGD(examples=len(x))
newton = kopt.LBFGS(history=5)
by_callable = kopt.Adam(lambda: 1e-3)
by_count = kopt.Adam(lambda step: 1e-3 / (1 + step))
by_keras = kopt.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 100), weight_decay=WarmupLinear(0.1, steps=10))

embedding_apart = kopt.Route([(r"embedding", kopt.AdaGrad(0.1)), ("", kopt.AdamW(1e-3))])
adam_then_sgd = kopt.Switch(kopt.Adam(1e-3), second=kopt.SGD(0.05), after=1000)
adam_then_newton = kopt.Switch("adam", second=kopt.LBFGS(history=5), after=1000)
lower_layers_slower = kopt.AdamW(1e-4, multipliers=kopt.layerwise_decay(model, 0.8))
ahead = kopt.Lookahead(kopt.AdamW(1e-3, weight_decay=0.1), k=5, alpha=0.5)
ball = kopt.EMANesterov(kopt.Hyperball(kopt.Muon(0.01), sphere_rate=2.0, others=["head"]), lookahead=0.2, end=900)
floored = kopt.CautiousDecay(kopt.UpdateFloor("muon", floor=0.3, by="output"), weight_decay=0.1)
cautious, noisy = kopt.Cautious("lion"), kopt.GradientNoise("sgd")
around = kopt.ScheduleFree(kopt.SGD(0.1), beta_1=0.9, clipnorm=1.0)

adam.learning_rate = 1e-4
adam.exclude_from_weight_decay(var_list=[model.trainable_weights[1]], var_names=["bias$"])
adam.reset()
adam.anchor()
again = kopt.Adam.from_config(adam.get_config())
again.learning_rate = 0.5
seen: Mapping[str, Any] = again.statistics()
advice: kopt.Advice = kopt.recommend(model, batch_size=32, dataset_size=256, goal="generalize", memory_limit=1e9)
model.compile(advice.optimizer, "mse")


# --------------------------------------------------------------------------------------------------------- schedules

schedules = [
    WarmupLinear(1e-3, steps=80, warmup=8, start=0.1, end=0.01),
    WarmupCosine(1e-3, steps=80, warmup=8),
    WarmupPolynomial(peak_learning_rate=1e-3, steps=80, power=3.0),
    REX(1e-3, steps=80),
    OneCycle(1e-3, steps=80, rise=0.2, form="linear"),
    Cyclical(1e-3, steps=80, base=0.1, mode="triangular2"),
    kopt.schedules.PowerCooldown(1e-3, steps=80, warmup=8, decay=40, power=1.5, end=0.02),
    kopt.schedules.join([WarmupLinear(1e-3, steps=80), 1e-4, REX(1e-3, steps=80)], [80, 100]),
]
schedule = kopt.schedules.WarmupStableDecay(1e-3, steps=80, warmup=8, decay=16, form="sqrt")
model.compile(kopt.Cautious(kopt.AdamW(schedule)), loss="mse")
rates = [kopt.AdamW(rate) for rate in [*schedules, WarmupStableDecay(steps=200)]]


# --------------------------------------------------------------------------------------------------------- callbacks

swa = kopt.SWA(start=3)
callbacks = [
    swa,
    kopt.SWA(3, every=2, keep=True, batches=[x[:32], x[32:64]]),
    kopt.EMA(0.99),
    kopt.TailAverage(0.1, every=5, steps=1000, keep=True),
    kopt.EMA(momentum=0.9, every=2, batches=[(x, y)]),
    kopt.AveragedWeights(),
    kopt.AveragedWeights(keep=True, batches=[x]),
]
model.fit(x, y, epochs=5, callbacks=[swa])
with swa.weights():
    model.save("averaged.keras")
state: dict[str, Any] = swa.get_state()
swa.set_state(state)

finder = kopt.LearningRateFinder(lowest=1e-6, steps=50)
suggested: float = finder.find(model, x, y, batch_size=32)
finder.plot("rates.png")
model.optimizer.learning_rate = suggested

stats = OptimizerStats("logs", every=2, hparams={"beta": 0.95})
history = model.fit(x, y, epochs=2, callbacks=[stats])
stats.finish({"loss": 1.0})


# ---------------------------------------------------------------------------------------- full batch, sharpness, peft

result = kopt.minimize(model, x, y, tolerance=1e-4)
print(result.converged, result.evaluations, result.loss)
w = keras.Variable([1.0, 2.0])
other: kopt.Result = kopt.minimize(
    lambda: ops.sum(ops.square(w)), variables=[w], optimizer=kopt.LBFGS(), max_evaluations=9
)

flat = kopt.SAM.of(model, rho=0.05)
flat.compile(kopt.ASAM.of(model), "mse")
looking = kopt.LookSAM.of(model, every=3)

peft.get_peft_model(model, peft.LoRA(r=8, target_modules="all-linear"))
peft.print_trainable_parameters(model)
model.compile(optimizer=kopt.AdamW(1e-3, multipliers=peft.lora_plus(16)), loss="mse")
with peft.disable_adapter(model):
    plain = model.predict(x)
peft.save_pretrained(model, "adapter")
peft.merge_and_unload(model)
methods: list[Adapter] = [
    peft.LoRA(r=4),
    peft.LoRA(lora_alpha=16, use_rslora=True, init_lora_weights="pissa", rank_pattern={"query": 4}),
    peft.DoRA(r=2, bias="lora_only"),
    peft.IA3(),
    peft.Houlsby(),
    peft.Pfeiffer(),
    peft.BitFit(target_modules=["query"]),
    peft.LayerNormTuning(),
    peft.PromptTuning(),
    peft.PTuning(num_virtual_tokens=8, encoder_hidden_size=64),
    peft.AdaLoRA(target_r=4, init_r=6, total_step=300, deltaT=10),
]
model.fit(x, y, callbacks=[peft.AllocateRanks()])
peft.initialize(model, peft.LoRA(init_lora_weights="eva"), [x], rho=1.0)


# --------------------------------------------------------------------------------------------------- rules of one's own


class SignMomentum(kopt.Optimizer):
    """m ← β m + (1-β) g,  u = sign(m),  w ← w - η u."""

    learning_rate = 1e-4
    beta: kopt.Fraction = 0.9
    slots = {"m": kopt.Slot()}

    def rule(self, g: Any, w: Any, s: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        m = self.beta * s.m + (1 - self.beta) * g
        return ops.sign(m), {"m": m}


class Untyped(SignMomentum):
    """As in README, without annotations of the method."""

    beta = 0.8

    def rule(self, g, w, s, t):
        u, new = super().rule(g, w, s, t)
        return 2 * u, new


class Mine(kopt.Optimizer):
    """Every kind of argument."""

    learning_rate = 1e-3
    beta: Fraction = 0.9
    form: Literal["a", "b"] = "a"
    warmup: Count | None = None
    floor: Positive = 1e-3
    slack: NonNegative = 0
    mix: OpenFraction = 0.5
    part: Share = 1
    biased: bool = False
    row_wise: ClassVar[bool] = False

    @property
    def slots(self) -> Mapping[str, kopt.Slot]:
        """One or two."""
        return {"m": kopt.Slot()} | ({} if self.biased else {"v": kopt.Slot("weight", exact=True)})

    @property
    def shared(self) -> Mapping[str, Any]:
        """A number."""
        return {"total": 0.0}

    def settle(self, sums: dict[str, Any], s: Any, t: Any) -> dict[str, Any]:
        return {"total": s.total + sums["norm"]}

    def contribute(self, g: Any, w: Any, s: Any, t: Any) -> dict[str, Any]:
        return {"norm": ops.sum(ops.square(g))}

    def advance(self, g: Any, w: Any, s: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        rate: float = self.beta * self.floor
        return w - s.learning_rate * rate * g, {"m": g}

    def measure(self, s: Any, t: Any) -> dict[str, Any]:
        return {"m": ops.sum(s.m)}


model.compile(optimizer=SignMomentum(beta=0.95, global_clipnorm=1.0), loss="mse")
mine = [
    Untyped(1e-3, beta=0.5),
    Mine(form="b", warmup=10),
    Mine(1e-2, warmup=None, part=0.5),
    Mine(WarmupLinear(steps=9)),
]
wrapped = kopt.Lookahead(SignMomentum(1e-3, beta=0.7), k=6)


class Stairs(WarmupLinear):
    """A schedule of one's own, from a base of kopt."""

    stairs: Count = 4

    def shape(self, p: Any) -> Any:
        return 1 - self.stairs * p // 1 / self.stairs


class Constant(Schedule):
    """A schedule of one's own, from the base of all."""

    share: kopt.Share = 1.0

    def factor(self, t: Any) -> Any:
        return self.share + 0 * t


class Scale(Adapter):
    """An adapter of one's own: one factor for the whole kernel."""

    peft_type = "SCALE"
    start_at: Positive = 1.0
    kind: Literal["linear", "log"] = "linear"

    def weights(self, site: Any) -> dict[str, Weight]:
        return {"scale": Weight((1,), lambda rng, shape: np.full(shape, self.start_at))}

    def effective(self, w: Any, p: Any) -> Any:
        return w * (1 + p.gate * (p.scale - 1))

    def forward(self, x: Any, base: Base, p: Any) -> Any:
        return super().forward(x, base, p)


own = [Stairs(1e-3, steps=100, warmup=5, stairs=8), Constant(0.1, steps=10, share=0.5)]
trained = kopt.SGD(Constant(steps=1))
peft.get_peft_model(model, Scale(start_at=2, kind="log", target_modules=["dense"]))
