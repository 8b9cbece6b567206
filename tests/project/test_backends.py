"""JAX and torch give TensorFlow's values: a sample of what docs/backends.md measures, and files between backends."""

import functools
import importlib.util
import json
import os
import random
import subprocess
import sys

import backend_runs
import generate
import keras
import numpy as np
import pytest
from backend_cases import CASES, SECTIONS
from backend_files import MAKERS
from backend_optimizers import WRAPPED, variables, weights_and_gradients
from problems import rules

import kopt

SAMPLE = 18
other_backends = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
        )
        for name in backend_runs.OTHERS
    ],
)


def chosen():
    """Returns some cases, the same each time, and all that a backend refuses."""
    refused = [name for name, case in CASES.items() if case.refused]
    return sorted({*random.Random(5).sample(sorted(CASES), SAMPLE), *refused})


@functools.cache
def of_tensorflow():
    return backend_runs.run("tensorflow", chosen())


@pytest.mark.slow
@other_backends
def test_values_are_those_of_tensorflow(backend):
    cases = {name: CASES[name] for name in chosen()}
    names = backend_runs.on(backend, cases)
    found = backend_runs.compared(cases, of_tensorflow(), backend_runs.run(backend, names))
    assert len(found) == len(names) > SAMPLE / 2
    for name, difference in found.items():
        if backend in cases[name].refused:
            assert "TensorFlow" in difference or "compiled" in difference, difference
        else:
            assert cases[name].holds(difference), (name, difference)


@pytest.mark.slow
@other_backends
def test_files_go_from_one_backend_to_another(backend, tmp_path):
    order = [("tensorflow",), (backend, "tensorflow"), ("tensorflow", backend)]
    for here, *others in order:
        folder = tmp_path / "back" if others == [backend] else tmp_path
        own = {"KERAS_BACKEND": here, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        path = os.pathsep.join([str(generate.ROOT), os.environ.get("PYTHONPATH", "")])
        if folder != tmp_path:
            folder.mkdir()
            (folder / backend).symlink_to(tmp_path / backend)
        command = [sys.executable, str(generate.ROOT / "tests" / "support" / "backend_files.py"), str(folder), *others]
        subprocess.run(command, env={**os.environ, **own, "PYTHONPATH": path}, check=True, capture_output=True)
    pairs = [("tensorflow-from-tensorflow", f"{backend}-from-tensorflow")]
    pairs += [(f"{backend}-from-{backend}", f"back/tensorflow-from-{backend}")]
    for one, two in pairs:
        with np.load(tmp_path / f"{one}.npz") as expected, np.load(tmp_path / f"{two}.npz") as found:
            assert sorted(found) == sorted(expected) and {k.split("/")[0] for k in found} == {*MAKERS}
            for k in expected:
                np.testing.assert_allclose(found[k], expected[k], rtol=1e-5, atol=1e-5, err_msg=k)


@pytest.mark.slow
def test_keras_lists_every_variable():
    options = {"use_ema": True, "gradient_accumulation_steps": 2, "state_dtype": "int8"}
    wrapped = {
        **WRAPPED,
        "options": lambda: kopt.Adam(**options),
        "short": lambda: kopt.Mechanic(kopt.Lookahead("adam")),
    }
    for name, make in {**{k: cls for k, cls in rules().items() if k != "Route"}, **wrapped}.items():
        optimizer = make()
        optimizer.build(variables(weights_and_gradients()[0], "bfloat16" if name == "short" else "float32"))
        listed = [id(v) for v in optimizer.variables]
        kept = {k: v for k, v in optimizer._held.variables(optimizer).items() if id(v) not in listed}
        assert not kept and len(set(listed)) == len(listed), (name, kept)


def test_keras_distribution_is_refused_where_keras_ignores_it():
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
    try:
        with pytest.raises(ValueError, match=r"^Adam: keras.distribution does nothing on the TensorFlow"):
            kopt.Adam().build([keras.Variable(np.ones(3))])
    finally:
        keras.distribution.set_distribution(None)


def test_what_was_measured_holds():
    measured = json.loads(generate.DIFFERENCES.read_text(encoding="utf-8"))
    assert list(measured) == list(SECTIONS), f"Run `{generate.COMMAND}`."
    for section, found in measured.items():
        for name, differences in found.items():
            case = SECTIONS[section][name]
            assert set(differences) <= set(case.only), (section, name)
            for backend, difference in differences.items():
                refused = backend in case.refused
                assert isinstance(difference, str) if refused else case.holds(difference), (section, name, backend)
