"""Adapters and callbacks on the other backends of Keras give TensorFlow's values."""

import importlib.util

import backend_adapters
import backend_runs
import pytest
from backend_cases import CASES

SAMPLE = {
    "callbacks": [
        "SWA",
        "AveragedWeights, ScheduleFreeAdamW",
        "OptimizerStats, AdamW, clipped",
        "AdapterStats",
        "SAM",
    ],
    "adapters": [
        "DoRA, Dense",
        "LoRA, MultiHeadAttention",
        "LoRA, Embedding",
        "PromptTuning",
        "LoRA, target_parameters",
        "verbs while training",
        "EVA, CorDA, LoRA-GA",
        "`.keras`, pickle, deepcopy",
        "files that it wrote",
    ],
}
NAMES = [f"{section}/{name}" for section, names in SAMPLE.items() for name in names]
READING = "adapters/files that others wrote"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that all backends see."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def expected(folder):
    """What TensorFlow gives."""
    return backend_runs.run(backend_runs.REFERENCE, NAMES, **{backend_adapters.FOLDER: str(folder)})


def is_read(read, expected):
    """Whether what was read from the files of each backend, a whole model and then adapters, is what was written."""
    written = expected["adapters/files that it wrote"]
    each = [written[[*backend_adapters.FILED].index("dora")], *written]
    return CASES[READING].holds(CASES[READING].difference(read, each * (len(read) // len(each))))


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_runs.OTHERS)
def test_adapters_and_callbacks_give_the_values_of_tensorflow(backend, expected, folder):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    found = backend_runs.run(backend, [*NAMES, READING], **{backend_adapters.FOLDER: str(folder)})
    wrong = {}
    for name in NAMES:
        if backend in CASES[name].refused:
            assert "set KERAS_BACKEND=tensorflow" in found[name], name
        elif not CASES[name].holds(difference := CASES[name].difference(found[name], expected[name])):
            wrong[name] = difference
    assert not wrong
    assert is_read(found[READING], expected)


@pytest.mark.slow
def test_tensorflow_reads_what_others_wrote(folder, expected):
    found = backend_runs.run(backend_runs.REFERENCE, [READING], **{backend_adapters.FOLDER: str(folder)})
    assert is_read(found[READING], expected)
