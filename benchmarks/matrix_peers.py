"""Published implementations of the rules that see kernels as matrices, for `benchmarks.parity`."""

import functools
import importlib
import types
from typing import Any

import numpy as np

import kopt
from benchmarks.peers import RATE, TINY, Case, made, on_matrices
from kopt.optimizers.engine.noise import normal
from kopt.optimizers.matrix.psgdkron import SALT


def cases() -> dict[str, Case]:
    """Returns for each rule: kopt's, the peer, its run, and why they differ where they do."""
    import pytorch_optimizer as po
    import torch

    def muon(ps: Any, d: float) -> Any:
        return torch.optim.Muon(ps, RATE, weight_decay=d, adjust_lr_fn="match_rms_adamw")

    def normuon(ps: Any, d: float) -> Any:
        options = {"update_scale": "match_rms", "foreach": False}
        return po.NorMuon([{"params": ps, "use_muon": True}], RATE, weight_decay=d, **options)

    def adafactor(ps: Any, d: float) -> Any:
        return torch.optim.Adafactor(ps, RATE, weight_decay=d)

    def scion(ps: Any, d: float) -> Any:
        return po.SCION(ps, RATE, momentum=0.1, scale=50.0, weight_decay=d, foreach=False)

    def came(ps: Any, d: float) -> Any:
        return po.CAME(ps, RATE, betas=(0.9, 0.999, 0.9999), weight_decay=d)

    def galore(ps: Any, d: float) -> Any:
        few = {"rank": 2, "update_proj_gap": 100, "scale": 0.25, "projection_type": "std"}
        optimizer = po.GaLore([{"params": ps, **few}], RATE, betas=(0.9, 0.999), eps=TINY)
        return types.SimpleNamespace(step=lambda: ([p.data.mul_(1 - RATE * d) for p in ps], optimizer.step()))

    def mini(ps: Any, d: float, name: str = "q_proj.weight") -> Any:
        def one(p: Any) -> Any:
            model = types.SimpleNamespace(named_parameters=lambda: [(name, p)])
            sizes = {"num_embeds": p.shape[-1], "num_heads": p.shape[-1]}
            return po.AdamMini(model, RATE, betas=(0.9, 0.999), weight_decay=d, **sizes)

        optimizers = [one(p) for p in ps]
        return types.SimpleNamespace(step=lambda: [optimizer.step() for optimizer in optimizers])

    def kron(ps: Any, d: float) -> Any:
        psgd = importlib.import_module("pytorch_optimizer.optimizer.psgd")
        always = {"pre_conditioner_update_probability": 1.0, "balance_prob": 0.0}
        optimizer = po.Kron(ps, RATE, weight_decay=d, precondition_dtype=torch.float64, **always)
        plain = getattr(psgd.initialize_q_expressions, "plain", psgd.initialize_q_expressions)

        def begun(p: Any, _: float, *rest: Any, **options: Any) -> Any:
            return plain(p, float(p.grad.square().mean()) ** -0.25, *rest, **options)

        def drawn(x: Any, **_: Any) -> Any:
            found = normal(np.zeros((1, *x.T.shape), "float32"), optimizer.param_groups[0]["step"], SALT)
            return torch.tensor(np.asarray(found, "float64")[0].T)

        begun.plain = plain  # type: ignore[attr-defined]
        psgd.initialize_q_expressions = begun
        psgd.torch = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64, "randn_like": drawn})
        return optimizer

    def soap(ps: Any, d: float) -> Any:
        soap = importlib.import_module("pytorch_optimizer.optimizer.soap")
        soap.torch = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})

        class Begun(po.SOAP):
            def update_pre_conditioner(self, grad: Any, state: Any, **rest: Any) -> None:
                first = state["Q"] is None
                super().update_pre_conditioner(grad, state, **rest)
                if first:
                    pairs = zip(state["Q"], (grad, grad.T), strict=True)
                    state["Q"] = [torch.linalg.qr(g, mode="complete")[0] if len(q) else q for q, g in pairs]

        return Begun(ps, RATE, betas=(0.95, 0.95), weight_decay=d, max_precondition_dim=4, precondition_frequency=3)

    torch.Tensor.bfloat16 = lambda x: x  # type: ignore[method-assign]  # what both matrix rules round to
    for module in ("muon.normuon", "scion"):
        matrix = importlib.import_module(f"pytorch_optimizer.optimizer.{module}")
        matrix.zero_power_via_newton_schulz_5 = functools.partial(
            matrix.zero_power_via_newton_schulz_5, dtype=torch.float64
        )
    exact = "begun with the same bases, without its rounding to float32; the peer does not decay at the first step"
    as_matrices = "the peer's rounding to bfloat16 is taken off; it sees matrices alone, vectors are torch's AdamW"

    return {
        "GaLore": (
            lambda d: kopt.GaLore(kopt.AdamW(RATE, weight_decay=d, epsilon=TINY), rank=2),
            "pytorch_optimizer GaLore",
            on_matrices(galore, vectors=galore),
            "as long as P stays; ε off: the peer has it beside the uncorrected root, and decays after the step",
        ),
        "Muon": (made("Muon"), "torch Muon", on_matrices(muon), as_matrices),
        "NorMuon": (made("NorMuon"), "pytorch_optimizer NorMuon", on_matrices(normuon), as_matrices),
        "PSGDKron": (
            made("PSGDKron", adam_rate=1.0, ratio=4.0, damping=TINY),
            "pytorch_optimizer Kron",
            on_matrices(kron),
            "δ off; renewed at every step, begun alike, with the same random numbers, without its rounding to float32",
        ),
        "Scion": (
            made("Scion"),
            "pytorch_optimizer SCION",
            on_matrices(scion, vectors=scion),
            "the peer's rounding to bfloat16 is taken off; decay is free in both",
        ),
        "SOAP": (made("SOAP", every=3), "pytorch_optimizer SOAP", on_matrices(soap, beta_1=0.95), exact),
        "Adafactor": (made("Adafactor"), "torch Adafactor", on_matrices(adafactor, vectors=adafactor), ""),
        "AdamMini": (
            made("AdamMini"),
            "pytorch_optimizer AdamMini",
            on_matrices(mini, vectors=functools.partial(mini, name="embed")),
            "the peer is told the blocks, outputs of kernels and elements of vectors, and has moments in float32",
        ),
        "CAME": (made("CAME"), "pytorch_optimizer CAME", on_matrices(came, vectors=came), ""),
    }
