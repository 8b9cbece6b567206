"""docs/from-*.md: each name of other libraries has its row, and what a row says of kopt is so."""

import importlib
import importlib.metadata
import importlib.util
import json

import name_pages
import numpy as np
import pytest
from problems import descend

import kopt
from benchmarks import names

every_library = pytest.mark.parametrize("library", name_pages.LIBRARIES)


@every_library
def test_expressions_and_names_are_those_of_kopt(library):
    name_pages.check(library, name_pages.page(library))
    for name, row in name_pages.rows(library):
        assert row.keys() & {"kopt", "want", "remark"}, f"{library}.yaml says nothing about {name}"
        assert not row.keys() & {"peer", "schedule"} or "kopt" in row, name
        made = name_pages.made(row["kopt"]) if "kopt" in row else None
        assert made is None or "schedule" not in row or made(0) >= 0


def test_a_page_cannot_name_what_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match=r"torch.yaml names kopt.Madam, which does not exist"):
        name_pages.check("torch", "as `kopt.Madam`, beside `kopt.Adam`")
    table = {"sections": [{"title": "", "names": {"Adam": {"kopt": "kopt.Adam(betas=(0.9, 0.999))"}}}]}
    monkeypatch.setattr(name_pages, "table", lambda library: table)
    with pytest.raises(ValueError, match=r"torch.yaml, Adam: kopt.Adam\(betas=.* fails: .*betas"):
        name_pages.check("torch", "")


def test_a_row_that_waits_is_filled_when_the_rule_is_there():
    assert name_pages._line("sophia", {"want": "Nowhere"}, {}) == "| `sophia` |  |  | not here |"
    assert name_pages._line("adam", {"want": "Adam"}, {}) == "| `adam` | `kopt.Adam` |  |  |"


@every_library
def test_differences_are_measured_and_small(library):
    found = json.loads(name_pages.MEASURED.read_text(encoding="utf-8"))[library]
    assert list(found) == names.compared(library), f"Run `python -m benchmarks.names {library}`."
    assert len(found) > 20
    for name, difference in found.items():
        assert difference <= 1e-6, (library, name)


@every_library
@pytest.mark.slow
def test_every_public_name_has_a_row(library):
    pytest.importorskip(library)
    if (version := importlib.metadata.version(library.replace("_", "-")).split("+")[0]) != (
        known := name_pages.table(library)["version"]
    ):
        pytest.skip(f"the table is that of {known}, and {version} is installed")
    assert not names.public(library) - {*name_pages.names(library)}


@pytest.fixture
def as_before():
    """Puts back the precision of other libraries, which the comparison sets."""
    before = []
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        before.append((torch.set_default_dtype, torch.get_default_dtype()))
    if importlib.util.find_spec("jax"):
        jax = importlib.import_module("jax")
        before.append((lambda x: jax.config.update("jax_enable_x64", x), jax.config.jax_enable_x64))
    yield
    for put, value in before:
        put(value)


@every_library
@pytest.mark.slow
def test_differences_are_what_was_measured(library, as_before):
    pytest.importorskip(library)
    for name in names.compared(library)[::3]:
        assert names.difference(library, name) <= 1e-6, (library, name)


# ------------------------------------------------------------------------------------- compositions, from their papers


def moments(g, m, v, t, beta_1, beta_2=0.999):
    m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
    return m, v, m / (1 - beta_1**t), v / (1 - beta_2**t)


def trained(optimizer, weight, gradients):
    return descend(optimizer, [weight], [[g] for g in gradients], "float64")[0]


def steps_of(shape=(4, 3), count=24):
    rng = np.random.default_rng(3)
    return rng.normal(size=shape), [rng.normal(size=shape) + 0.5 for _ in range(count)]


def test_ranger_is_a_composition():
    """github.com/lessw2020/Ranger: gradients of mean zero, RAdam (arXiv:1908.03265), Lookahead (arXiv:1907.08610)."""
    weight, gradients = steps_of()
    w = slow = weight
    m = v = 0.0
    last = 2 / (1 - 0.999) - 1
    for t, g in enumerate(gradients, 1):
        m, v, mean, square = moments(g - g.mean(0), m, v, t, 0.95)
        rho = last - 2 * t * 0.999**t / (1 - 0.999**t)
        root = np.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)) if rho > 5 else 0.0
        w = w - 0.03125 * (root * mean / (np.sqrt(square) + 1e-30) if rho > 5 else mean)
        if t % 6 == 0:
            w = slow = slow + 0.5 * (w - slow)
    ranger = name_pages.made(dict(name_pages.rows("pytorch_optimizer"))["Ranger"]["kopt"])
    np.testing.assert_allclose(trained(ranger, weight, gradients), w, rtol=1e-10)


def test_swats_is_a_composition_once_it_has_switched():
    """arXiv:1712.07628, Algorithm 1: Adam until the rate of SGD, projected on its steps, agrees with its average."""
    weight, gradients = steps_of()
    w, m, v, b, rate, found, switched = weight, 0.0, 0.0, 0.0, 0.0, 0.0, None
    for t, g in enumerate(gradients, 1):
        if switched:
            b = 0.9 * b + g
            w = w - (1 - 0.9) * found * b
            continue
        m, v, mean, square = moments(g, m, v, t, 0.9)
        p = -0.03125 * mean / (np.sqrt(square) + 1e-8)
        w = w + p
        gamma = -(p * p).sum() / (p * g).sum()
        rate = 0.999 * rate + (1 - 0.999) * gamma
        found = rate / (1 - 0.999**t)
        if t > 1 and abs(found - gamma) < 1e-2 * found:  # the paper has 1e-9, which takes longer
            switched = t
    assert switched and switched < len(gradients) - 5
    second = kopt.Momentum(0.1 * found, momentum=0.9)
    done = trained(kopt.Switch(kopt.Adam(0.03125), second=second, after=switched), weight, gradients)
    np.testing.assert_allclose(done, w, rtol=1e-6)  # the rates within are float32
