"""Prefixes in both directions between kopt and Hugging Face peft on torch: the same outputs, the same counts."""

import numpy as np
import pytest
from hub_cases import CASES
from torch_peers import LIMIT, MARKS, disturb_torch, peft

import kopt.peft

pytestmark = MARKS
ALIKE = {  # with the difference of the plain bases, which have another GELU or another epsilon
    "BERT": 2e-4,
    "RoBERTa": 2e-4,
    "GPT-2": 0,
    "Gemma": 0,
    "Gemma 2": 0,
    "GPT-OSS": 0,
    "Llama 3": 0,
    "Mistral": 2e-3,
    "Mixtral": 0,
    "Qwen 2": 0,
    "Qwen 2 MoE": 0,
    "Qwen 3": 2e-4,
    "Qwen 3 MoE": 0,
}
REFUSED = ("Gemma 3", "Gemma 4", "SmolLM3", "Qwen 3.5")


@pytest.mark.parametrize("projection", [False, True], ids=["prefix", "projection"])
@pytest.mark.parametrize("name", ALIKE)
def test_both_ways(name, projection, tmp_path):
    from hub_peers import Peers

    peers = Peers(CASES[name], tmp_path)
    plain = peers.torch_model(base=CASES[name].task is None)
    reference = peers.torch_output(plain)
    task = "CAUSAL_LM" if CASES[name].task else "FEATURE_EXTRACTION"
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task, prefix_projection=projection)
    theirs = peft.get_peft_model(plain, config).eval()
    disturb_torch(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = peers.torch_output(theirs)
    assert np.abs(expected - reference).max() > 0.1

    model = peers.keras_model()
    assert np.abs(peers.keras_output(model) - reference).max() < LIMIT + ALIKE[name]
    kopt.peft.load_adapter(model, tmp_path / "theirs", base_model=peers.folder)
    assert np.abs(peers.keras_output(model) - expected).max() < LIMIT + ALIKE[name]
    fresh = peers.keras_model()
    kopt.peft.get_peft_model(fresh, kopt.peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=projection))
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert kopt.peft.get_nb_trainable_parameters(fresh)[0] == trained
    ours = peers.keras_output(fresh)
    assert np.abs(ours - reference).max() > 0.1
    kopt.peft.save_pretrained(fresh, tmp_path / "ours", base_model=peers.folder, task_type=task)
    back = peft.PeftModel.from_pretrained(
        peers.torch_model(base=CASES[name].task is None), str(tmp_path / "ours")
    ).eval()
    assert np.abs(peers.torch_output(back) - ours).max() < LIMIT + ALIKE[name]


@pytest.mark.parametrize("name", [name for name in REFUSED if name in CASES])
def test_what_keras_cannot_do_alike_is_refused(name, tmp_path):
    from hub_peers import Peers

    model = Peers(CASES[name], tmp_path).keras_model()
    with pytest.raises(ValueError, match="can host PrefixTuning"):
        kopt.peft.get_peft_model(model, kopt.peft.PrefixTuning())
