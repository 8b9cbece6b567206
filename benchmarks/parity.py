"""Runs published implementations beside kopt's rules, for docs/parity.md.

    pip install torch==2.13.0 pytorch-optimizer==4.1.0 optax schedulefree prodigyopt torch-optimi \
        adam-atan2-pytorch dadaptation dog-optimizer
    python -m benchmarks.parity [RULE ...]      # writes tests/project/parity.json
    python docs/generate.py --measure           # writes docs/parity.md

Both take the same 20 gradients in float64, with decay off and on, for a matrix, a vector and a tensor of four axes. The
rates are powers of two, which float32 holds exactly; another one, such as 0.01, bounds the agreement by 2e-08.
The difference is the largest one over all steps and elements, divided by the largest weight.
"""

import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import matrix_peers
from benchmarks.peers import RATE, TINY, Arrays, Case, Run, curvature, on_kernels, on_optax, on_torch
from benchmarks.peers import made as k

HERE = pathlib.Path(__file__).parents[1]
DECAY, STEPS = 0.1, 20
SHAPES = ((4, 3), (3,), (2, 2, 3, 4))
EPSILON_HAT = "the peer has ε beside the uncorrected root"


def gradients() -> tuple[Arrays, list[Arrays]]:
    """Returns the first weights, and gradients that fade and span four decades."""
    rng = np.random.default_rng(0)
    weights, scales = [rng.normal(size=s) for s in SHAPES], [10 ** rng.uniform(-2.5, 1.5, s) for s in SHAPES]
    return weights, [[k * 0.7**t * rng.normal(size=k.shape) for k in scales] for t in range(STEPS)]


def ours(make: Callable[[float], Any], weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
    """Runs a kopt optimizer."""
    optimizer, names = make(decay), ("kernel", "bias", "conv")
    variables = [keras.Variable(w, dtype="float64", name=n) for w, n in zip(weights, names, strict=True)]
    points = []
    optimizer.build(variables)
    for gs in steps:
        if hasattr(optimizer, "observe"):
            optimizer.observe(lambda gs=gs: [tf.constant(curvature(g)) for g in gs])
        optimizer.apply([tf.constant(g) for g in gs], variables)
        points.append([v.numpy() for v in variables])
    return points


def cases() -> dict[str, Case]:
    """Returns for each rule: kopt's, the peer, its run, and why they differ where they do."""
    import adam_atan2_pytorch
    import dadaptation
    import dog
    import optax
    import optimi
    import prodigyopt
    import pytorch_optimizer as po
    import schedulefree
    import torch

    def t(cls: Any, rate: float = RATE, last_first: bool = False, decoupled: bool = False, **options: Any) -> Run:
        return on_torch(lambda ps, d: cls(ps, lr=rate, weight_decay=d, **options), last_first, decoupled)

    def chained(*transforms: Any) -> Run:
        return on_optax(lambda d: optax.chain(*transforms, optax.adamw(RATE, weight_decay=d)))

    def wrapped(cls: Any, **options: Any) -> Callable[[float], Any]:
        return lambda d: cls(kopt.AdamW(RATE, weight_decay=d), **options)

    def centralized(ps: Any, d: float) -> Any:
        optimizer = torch.optim.AdamW(ps, RATE, weight_decay=d)
        plain = optimizer.step

        def step() -> None:
            for p in ps:
                po.centralize_gradient(p.grad)
            plain()

        optimizer.step = step
        return optimizer

    def ftrl(weights: Arrays, steps: list[Arrays], decay: float) -> list[Arrays]:
        # The kernel forgets the first weight; this z is the one at which that weight is the minimum.
        linear = [tf.Variable(-(np.sqrt(0.1) / RATE + 0.2) * w) for w in weights]
        options = {"lr": RATE, "l1": 0.05, "l2": 0.1, "l2_shrinkage": 0.0, "lr_power": -0.5}
        turn = itertools.cycle(linear)

        def step(w: Any, n: Any, g: Any) -> None:
            kernel = tf.raw_ops.ResourceApplyFtrlV2
            kernel(var=w.handle, accum=n.handle, linear=next(turn).handle, grad=tf.constant(g), **options)

        return on_kernels(step, 0.1)(weights, steps, 0.0)

    def proximal(w: Any, a: Any, g: Any) -> None:
        tf.raw_ops.ResourceApplyProximalAdagrad(
            var=w.handle, accum=a.handle, lr=RATE, l1=0.05, l2=0.1, grad=tf.constant(g)
        )

    def yogi(d: float) -> Any:
        step = optax.scale_by_learning_rate(RATE)
        return optax.chain(optax.scale_by_yogi(eps=1e-3), optax.add_decayed_weights(d), step)

    def sm3(d: float) -> Any:
        step = optax.scale_by_learning_rate(RATE)
        return optax.chain(optax.scale_by_sm3(eps=TINY), optax.add_decayed_weights(d), step)

    sophia = on_torch(lambda ps, d: po.SophiaH(ps, RATE, (0.96, 0.99), d, p=1.0, eps=1e-12), curved=True)
    hessian = on_torch(lambda ps, d: po.AdaHessian(ps, RATE, weight_decay=d, eps=1e-4), curved=True)
    told = "told the curvature; the peer has neither γ nor a mean over positions: off"
    in_gradient = "decay is part of the gradient in both"
    coupled = "the peer's decay is coupled or missing: the weights are decayed in front of it"
    adam = {"betas": (0.9, 0.999)}
    return {
        "SGD": (k("SGD"), "torch SGD", t(torch.optim.SGD), ""),
        "Momentum": (k("Momentum"), "torch SGD", t(torch.optim.SGD, decoupled=True, momentum=0.9), coupled),
        "NAG": (k("NAG"), "torch SGD", t(torch.optim.SGD, decoupled=True, momentum=0.9, nesterov=True), coupled),
        "ASGD": (
            k("ASGD"),
            "torch ASGD",
            t(torch.optim.ASGD, t0=0),
            "weights; their averages, too, in tests/optimizers",
        ),
        "Rprop": (
            k("Rprop"),
            "torch Rprop",
            on_torch(lambda ps, _: torch.optim.Rprop(ps, RATE, step_sizes=(1e-4 * RATE, 5e3 * RATE)), decoupled=True),
            coupled,
        ),
        "AdaGrad": (k("AdaGrad"), "torch Adagrad", t(torch.optim.Adagrad, decoupled=True), coupled),
        "RMSprop": (
            k("RMSprop"),
            "torch RMSprop",
            t(torch.optim.RMSprop, decoupled=True, alpha=0.9, eps=1e-8),
            coupled,
        ),
        "Adam": (k("Adam"), "torch AdamW", t(torch.optim.AdamW), ""),
        "AdamW": (k("AdamW"), "torch AdamW", t(torch.optim.AdamW), ""),
        "AdaMax": (k("AdaMax"), "torch Adamax", t(torch.optim.Adamax, decoupled=True), coupled),
        "Nadam": (k("Nadam"), "torch NAdam", t(torch.optim.NAdam, decoupled_weight_decay=True), ""),
        "NadamW": (k("NadamW"), "torch NAdam", t(torch.optim.NAdam, decoupled_weight_decay=True), ""),
        "AdaBound": (k("AdaBound"), "pytorch_optimizer AdaBound", t(po.AdaBound), ""),
        "Lion": (k("Lion"), "optax lion", on_optax(lambda d: optax.lion(RATE, weight_decay=d)), ""),
        "SGDW": (k("SGDW", nesterov=True), "pytorch_optimizer SGDW", t(po.SGDW, momentum=0.9, nesterov=True), ""),
        "SignSGD": (k("SignSGD", momentum=0.9), "pytorch_optimizer SignSGD", t(po.SignSGD, momentum=0.9), ""),
        "Tiger": (k("Tiger"), "pytorch_optimizer Tiger", t(po.Tiger), ""),
        "QHAdam": (
            k("QHAdam", nu_2=0.9),
            "pytorch_optimizer QHAdam",
            t(po.QHAdam, betas=(0.995, 0.999), nus=(0.7, 0.9), weight_decouple=True),
            "the peer keeps its corrections in float32",
        ),
        "AdamP": (
            k("AdamP", epsilon=TINY),
            "pytorch_optimizer AdamP",
            t(po.AdamP, last_first=True, eps=TINY),
            f"ε off: {EPSILON_HAT}",
        ),
        "SGDP": (
            k("SGDP", 2 * RATE),
            "pytorch_optimizer SGDP",
            on_torch(lambda ps, d: po.SGDP(ps, 2 * RATE, momentum=0.9, nesterov=True, weight_decay=d * 0.1), True),
            "the peer divides the decay by 1 - μ; it gets (1 - μ) times ours",
        ),
        "LaProp": (
            k("LaProp"),
            "pytorch_optimizer LaProp",
            t(po.LaProp, decoupled=True, foreach=False),
            "the peer decays after its step: the weights are decayed in front of it",
        ),
        "DiffGrad": (
            k("DiffGrad", epsilon=TINY),
            "pytorch_optimizer DiffGrad",
            t(po.DiffGrad, eps=TINY),
            f"ε off: {EPSILON_HAT}, and 1e-15 under it",
        ),
        "MADGRAD": (
            k("MADGRAD"),
            "pytorch_optimizer MADGRAD",
            t(po.MADGRAD, RATE - 1e-6),
            f"the peer adds ε to the rate, taken off here; {in_gradient}",
        ),
        "LAMB": (k("LAMB"), "optax lamb", on_optax(lambda d: optax.lamb(RATE, weight_decay=d)), ""),
        "LARS": (
            lambda d: kopt.LARS(RATE, weight_decay=d, decay_mask=[("bias", 0.0)]),
            "pytorch_optimizer LARS",
            t(po.LARS),
            "the peer never decays vectors; so here",
        ),
        "Yogi": (k("Yogi"), "optax yogi", on_optax(yogi), "m begins at 1e-6 in the peer"),
        "RAdam": (
            k("RAdam", epsilon=TINY),
            "torch RAdam",
            t(torch.optim.RAdam, decoupled_weight_decay=True, eps=TINY),
            f"ε off: {EPSILON_HAT}",
        ),
        "AdaBelief": (k("AdaBelief"), "pytorch_optimizer AdaBelief", t(po.AdaBelief, rectify=True, eps=1e-16), ""),
        "NovoGrad": (
            k("NovoGrad"),
            "optax novograd",
            on_optax(lambda d: optax.novograd(RATE, b1=0.95, b2=0.98, eps=1e-8, weight_decay=d)),
            "",
        ),
        "AdaDelta": (k("AdaDelta"), "torch Adadelta", t(torch.optim.Adadelta, decoupled=True, rho=0.95), coupled),
        "ProximalAdaGrad": (
            k("ProximalAdaGrad", l1=0.05, l2=0.1),
            "tensorflow ApplyProximalAdagrad",
            on_kernels(proximal, 0.1),
            coupled,
        ),
        "FTRL": (
            lambda d: kopt.FTRL(RATE, l1=0.05, l2=0.2),
            "tensorflow ApplyFtrlV2",
            ftrl,
            "begun where the first weight counts; l₂ of the peer is half; without decay, which it has not",
        ),
        "Adan": (k("Adan"), "pytorch_optimizer Adan", t(po.Adan, max_grad_norm=0.0, weight_decouple=False), ""),
        "AdEMAMix": (
            k("AdEMAMix", alpha_warmup=10, beta_3_warmup=10),
            "pytorch_optimizer AdEMAMix",
            t(po.AdEMAMix, betas=(0.9, 0.999, 0.9999), alpha=5.0, weight_decouple=True, t_alpha_beta3=10),
            "the peer adds 1e-8 inside of the logarithms",
        ),
        "MARS": (
            k("MARS", epsilon=TINY),
            "pytorch_optimizer MARS",
            t(po.MARS, optimize_1d=True, betas=(0.95, 0.99), gamma=0.025, weight_decouple=True, eps=TINY),
            f"ε off: {EPSILON_HAT}, and 1e-15 under it",
        ),
        "ADOPT": (
            k("ADOPT"),
            "pytorch_optimizer ADOPT",
            t(po.ADOPT, decoupled=False, weight_decouple=True, clip_lambda=lambda t: (t - 1) ** 0.25),
            "the authors' bound, where the peer counts one step more; the peer decays at the first step, too",
        ),
        "AdamAtan2": (
            k("AdamAtan2", a=1.27),
            "adam-atan2-pytorch",
            t(adam_atan2_pytorch.AdamAtan2, decoupled_wd=False, **adam),
            "",
        ),
        "StableAdamW": (
            k("StableAdamW", epsilon=1e-6),
            "torch-optimi StableAdamW",
            t(optimi.StableAdamW, betas=(0.9, 0.99), eps=1e-6),
            "",
        ),
        "Grams": (
            k("Grams", epsilon=TINY),
            "pytorch_optimizer Grams",
            t(po.Grams, weight_decouple=True, eps=TINY, **adam),
            f"ε off: {EPSILON_HAT}",
        ),
        **{n: (k(n, every=1, gamma=1.0), "pytorch_optimizer SophiaH", sophia, told) for n in ("SophiaG", "SophiaH")},
        "AdaHessian": (k("AdaHessian", spatial=False), "pytorch_optimizer AdaHessian", hessian, told),
        "COCOB": (
            k("COCOB", 1.0),
            "optax cocob",
            on_optax(lambda d: optax.contrib.cocob(weight_decay=d)),
            f"learning rate 1; {in_gradient}",
        ),
        "Prodigy": (
            k("Prodigy", 1.0, epsilon=TINY),
            "prodigyopt Prodigy",
            t(prodigyopt.Prodigy, 1.0, eps=TINY),
            "ε off: the peer multiplies it by the next d",
        ),
        "DAdaptAdam": (
            k("DAdaptAdam", 1.0),
            "dadaptation DAdaptAdam",
            t(dadaptation.DAdaptAdam, 1.0, decouple=True),
            "",
        ),
        "DAdaptSGD": (
            k("DAdaptSGD", 1.0, momentum=0.9),
            "dadaptation DAdaptSGD",
            t(dadaptation.DAdaptSGD, 1.0, momentum=0.9),
            f"the peer averages where kopt has momentum; {in_gradient}",
        ),
        "DAdaptAdaGrad": (
            k("DAdaptAdaGrad", 1.0),
            "dadaptation DAdaptAdaGrad",
            t(dadaptation.DAdaptAdaGrad, 1.0, eps=TINY),
            in_gradient,
        ),
        "DoG": (k("DoG", 1.0), "dog-optimizer DoG", t(dog.DoG, 1.0), in_gradient),
        "LDoG": (k("LDoG", 1.0), "dog-optimizer LDoG", t(dog.LDoG, 1.0), in_gradient),
        "DoWG": (
            k("DoWG", 1.0),
            "optax dowg",
            on_optax(lambda d: optax.contrib.dowg(1.0, init_estim_sq_dist=1e-4, weight_decay=d)),
            in_gradient,
        ),
        "ScheduleFreeSGD": (
            k("ScheduleFreeSGD"),
            "schedulefree SGD",
            t(schedulefree.SGDScheduleFree, foreach=False),
            "",
        ),
        "ScheduleFreeAdamW": (
            k("ScheduleFreeAdamW"),
            "schedulefree AdamW",
            t(schedulefree.AdamWScheduleFree, foreach=False),
            "",
        ),
        "ScheduleFreeRAdam": (
            k("ScheduleFreeRAdam"),
            "schedulefree RAdam",
            t(schedulefree.RAdamScheduleFree, foreach=False),
            "",
        ),
        "Lookahead": (
            wrapped(kopt.Lookahead),
            "pytorch_optimizer Lookahead",
            on_torch(
                lambda ps, d: po.Lookahead(
                    torch.optim.AdamW(ps, RATE, weight_decay=d), k=5, alpha=0.5, pullback_momentum="none"
                )
            ),
            "",
        ),
        "Cautious": (
            lambda d: kopt.Cautious(kopt.Lion(RATE, weight_decay=d), floor=1e-3),
            "pytorch_optimizer Lion(cautious=True)",
            t(po.Lion, cautious=True),
            "the peer divides by (n + 1)/d where n of d elements move, kopt by n/d as the authors' code",
        ),
        "Mechanic": (
            lambda d: kopt.Mechanic(kopt.AdamW(RATE, weight_decay=d), start=1e-2),
            "optax mechanize",
            on_optax(
                lambda d: optax.contrib.mechanize(optax.adamw(RATE, weight_decay=d), weight_decay=0.01, s_init=1e-2)
            ),
            "",
        ),
        "GradientCentralization": (
            wrapped(kopt.GradientCentralization),
            "pytorch_optimizer centralize_gradient",
            on_torch(centralized, last_first=True),
            "",
        ),
        **matrix_peers.cases(),
        "SM3": (k("SM3"), "optax sm3", on_optax(sm3), "ε off: the peer has 1e-8 inside of the root"),
        "AdaptiveClip": (
            wrapped(kopt.AdaptiveClip),
            "optax adaptive_grad_clip",
            chained(optax.adaptive_grad_clip(0.01)),
            "",
        ),
    }


def distance(a: list[Arrays], b: list[Arrays]) -> float:
    """Returns the largest difference over all steps and weights, relative to the largest weight."""
    points = [(x, y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True)]
    return float(max(np.abs(x - y).max() for x, y in points) / max(np.abs(y).max() for _, y in points))


def main() -> None:
    """Runs all and writes the differences."""
    weights, steps = gradients()
    tf.config.run_functions_eagerly(True)
    found = {}
    only = sys.argv[1:]
    for name, (make, peer, run, why) in cases().items():
        if only and name not in only:
            continue
        package = peer.split()[0]
        label = f"{peer} {importlib.metadata.version(package.replace('_', '-'))}"
        differences = [distance(ours(make, weights, steps, d), run(weights, steps, d)) for d in (0.0, DECAY)]
        found[name] = {"peer": label, "plain": differences[0], "decayed": differences[1], "why": why}
        print(name, label, *(f"{d:.1e}" for d in differences), why, flush=True)
    path = HERE / "tests" / "project" / "parity.json"
    found = (json.loads(path.read_text(encoding="utf-8")) if only else {}) | found
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
