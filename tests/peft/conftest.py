"""Fixtures of the tests of adapters."""

import keras
import pytest
from files import METHODS, image_model
from probes import scramble

from kopt import peft


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def adapted():
    model = peft.get_peft_model(image_model(), METHODS["lora"]())
    scramble(model)
    return model


@pytest.fixture
def saved(adapted, tmp_path):
    peft.save_pretrained(adapted, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def quiet(monkeypatch):
    """Keeps Hugging Face's libraries offline and still, and torch's random numbers the same."""
    import torch
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
