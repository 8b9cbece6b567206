"""A tiny model of a case on both sides, and how far outputs differ there after an adapter has gone each way."""

import json
import pathlib
import re
from typing import Any

import keras
import keras_hub
import numpy as np
import peft
import safetensors.numpy
import torch
import transformers
from hub_cases import Case
from hub_checkpoints import CONFIGURATIONS, PUBLISHED
from hub_towers import add_image_tower, stand_in

import kopt.peft
from kopt.peft.model import adapters_of

Array = np.ndarray[Any, Any]
R = 3
DRAFTED = ((3, 1, 24), (3, 1, 24), (3, 2, 2, 12, 1, 8))
"""Shapes of a token, a hidden state, and the keys and values of a layer of each kind."""
KINDS = ("sliding_attention", "full_attention")
FOUND = ("pred_logits", "pred_boxes", "presence_logits", "pred_masks")
"""Outputs of a model that finds objects."""


class Peers:
    """A checkpoint of a case, made in a folder, and its outputs in both libraries."""

    def __init__(self, case: Case, folder: pathlib.Path) -> None:
        self.case, self.folder = case, folder / "base"
        stand_in()
        torch.manual_seed(3)
        config = getattr(transformers, case.config)(**case.options)
        model = getattr(transformers, case.model)(config)
        for parameter in model.parameters():
            scale, start = (0.08, 0.0) if parameter.ndim > 1 else (0.05, parameter.data)
            parameter.data = start + torch.randn(parameter.shape) * scale
        model.save_pretrained(self.folder)
        if change := PUBLISHED.get(case.converter):
            tensors = str(self.folder / "model.safetensors")
            safetensors.numpy.save_file(change(safetensors.numpy.load_file(tensors)), tensors, {"format": "pt"})
        file = self.folder / "config.json"
        saved = json.loads(file.read_text()) | dict(case.published)
        file.write_text(json.dumps(CONFIGURATIONS.get(case.converter, dict)(saved)))
        if case.converter == "gemma3n":
            add_image_tower(self.folder)
        rng = np.random.default_rng(0)
        vision = case.options.get("vision_config", case.options)
        size = vision.get("backbone_config", vision).get("image_size", 0)
        images = {"image first": 3, "boxes": 1}.get(case.inputs, 2)
        self.pixels = rng.normal(size=(images, 3, size, size)).astype("float32")
        self.ids = rng.integers(5, 58, (3, 12)).astype("int32")
        self.mask = np.ones((3, 12), "int32")
        if case.padded:
            self.mask[1, 8:] = 0
            self.ids[1, 8:] = getattr(config, "pad_token_id", None) or 0
        if case.inputs == "boxes":
            self.ids, self.mask = self.ids[:1, :1], self.mask[:1, :1]  # see its remark
        if case.inputs == "both":
            self.ids[:, -1] = config.text_config.eos_token_id  # the sentence is what stands there
        self.drafted = [
            rng.normal(size=size).astype("float32") for size in ((3, 1, 24), (3, 1, 24), (3, 2, 2, 12, 1, 8))
        ]
        self.boxes = np.full((1, 1, 4), (0.4, 0.5, 0.3, 0.4), "float32")
        self.rows = self.mask.astype(bool) if case.inputs != "pixels" else slice(None)

    def torch_model(self, base: bool) -> Any:
        """Returns the task model, or the base alone."""
        cls = transformers.AutoModel if base and "For" in self.case.model else getattr(transformers, self.case.model)
        options = {"add_pooling_layer": False} if base and self.case.converter in ("roberta", "xlm_roberta") else {}
        return cls.from_pretrained(self.folder, attn_implementation="eager", dtype=torch.float32, **options).eval()

    def keras_model(self) -> Any:
        """Returns KerasHub's model, whose layers have the same names each time."""
        keras.utils.clear_session()
        hub = keras_hub.models
        if self.case.inputs == "draft":
            return getattr(hub, self.case.task).from_preset(str(self.folder), preprocessor=None, dtype="float32")
        backbone = getattr(hub, self.case.backbone).from_preset(str(self.folder), dtype="float32")
        return (
            backbone if self.case.task is None else getattr(hub, self.case.task)(backbone=backbone, preprocessor=None)
        )

    def torch_output(self, model: Any) -> Array:
        """Returns logits of a language model, else the last hidden states."""
        ids, mask = torch.tensor(self.ids).long(), torch.tensor(self.mask).long()
        with torch.no_grad():
            if self.case.inputs == "both":
                return model(input_ids=ids, pixel_values=torch.tensor(self.pixels)).logits_per_image.numpy()
            if self.case.inputs == "pixels":
                out = model(pixel_values=torch.tensor(self.pixels))
            elif self.case.inputs == "draft":
                return self._draft(model)
            elif self.case.inputs == "boxes":
                box = {"input_boxes": torch.tensor(self.boxes), "input_boxes_labels": torch.ones((1, 1)).long()}
                out = model(pixel_values=torch.tensor(self.pixels), input_ids=ids, attention_mask=mask, **box)
                return np.concatenate([getattr(out, name).numpy().ravel() for name in FOUND])
            elif self.case.inputs == "image first":
                return self._after_image(model, ids, mask)
            elif self.case.inputs == "pairs":
                out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, decoder_attention_mask=mask)
            else:
                out = model(input_ids=ids, attention_mask=mask)
        return (out.logits if self.case.task else out.last_hidden_state).numpy()[self.rows]

    def _after_image(self, model: Any, ids: Any, mask: Any) -> Array:
        """Returns the logits of the tokens, which have an image in front of them."""
        config = self.case.options
        patches = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
        length = config.get("num_query_tokens", patches)
        ids = torch.nn.functional.pad(ids, (length, 0), value=config["image_token_index"])
        given = {"attention_mask": torch.nn.functional.pad(mask, (length, 0), value=1)}
        if self.case.converter == "pali_gemma":
            given["token_type_ids"] = torch.zeros_like(ids)
        out = model(input_ids=ids, pixel_values=torch.tensor(self.pixels), **given)
        return out.logits[:, length:].numpy()[self.rows]

    def _draft(self, model: Any) -> Array:
        """Returns the logits of the token after one, from what its language model keeps of the tokens before."""
        token, hidden, cache = (torch.tensor(value) for value in self.drafted)
        pairs = {kind: cache[:, i].transpose(-3, -2).unbind(1) for i, kind in enumerate(KINDS)}
        where = torch.full((len(token), 1), cache.shape[3] - 1)
        return model(
            inputs_embeds=torch.cat([token, hidden], -1), position_ids=where, shared_kv_states=pairs
        ).logits.numpy()

    def keras_output(self, model: Any) -> Array:
        """Returns the same of KerasHub's model."""
        if self.case.inputs == "draft":
            token, hidden, cache = self.drafted
            return np.asarray(model.call_with_cache(token, hidden, cache, cache.shape[3] - 1, None, 1, 0)[0])
        ids, mask = self.ids, self.mask
        values = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
        values["position_ids"] = np.tile(np.arange(ids.shape[1], dtype="int32"), (len(ids), 1))
        values |= {f"{side}_{name}": values[name] for side in ("encoder", "decoder") for name in values.copy()}
        values["boxes"] = np.concatenate([np.zeros((1, 1, 1), "float32"), self.boxes], -1)
        values["box_labels"] = np.ones((1, 1), "int32")
        if self.case.inputs not in ("tokens", "pairs"):
            values |= dict.fromkeys(("images", "pixel_values"), np.transpose(self.pixels, (0, 2, 3, 1)))
        if isinstance(model.input, dict):
            empty = {
                n: np.zeros((len(ids), *(size or 0 for size in i.shape[1:])), i.dtype) for n, i in model.input.items()
            }
            given = {n: values.get(n, none) for n, none in empty.items()}  # a tower without an image gets nothing
        else:
            given = values["images"]
        out = model(given, training=False)
        if self.case.inputs == "both":
            return np.asarray(out["vision_logits"])
        if self.case.inputs == "boxes":
            out |= {"pred_masks": np.moveaxis(out["pred_masks"], -1, 1)}
            return np.concatenate([np.asarray(out[name]).ravel() for name in FOUND])
        if isinstance(out, dict):
            out = out[next(n for n in ("sequence_output", "decoder_sequence_output") if n in out)]
        return np.asarray(out)[self.rows]


def measure(case: Case, folder: pathlib.Path) -> dict[str, float]:
    """Returns the largest differences of outputs, relative to the largest output of the plain base.

    Returns:
        "base": of the plain bases; "in": with an adapter that peft wrote; "out": with one that kopt wrote; "head": the
        same below the head of a task; "effect": the least that an adapter changed.
    """
    peers = Peers(case, folder)
    language = case.task is not None
    plain = peers.torch_model(base=not language)
    reference = peers.torch_output(plain)
    model = peers.keras_model()
    found = {"base": float(np.abs(peers.keras_output(model) - reference).max())}

    config = peft.LoraConfig(
        r=R,
        lora_alpha=2 * R,
        target_modules=list(case.targets),
        target_parameters=list(case.parameters) or None,
        task_type="CAUSAL_LM" if language else None,
    )
    theirs = peft.get_peft_model(plain, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    theirs.save_pretrained(str(folder / "theirs"))
    expected = peers.torch_output(theirs)
    kopt.peft.load_adapter(model, folder / "theirs", base_model=peers.folder)
    found["in"] = float(np.abs(peers.keras_output(model) - expected).max())
    found["effect"] = float(np.abs(expected - reference).max())

    fresh = peers.keras_model()
    hosts, parameters = [], []
    for path, layer in adapters_of(model).hosts.items():
        for kernel in layer.kernels_of("default"):
            short = re.sub(r"^\w+_backbone(_\d+)?\.", "", kernel)
            (hosts if kernel == path else parameters).append(short)
    adapter = kopt.peft.LoRA(r=R, target_modules=hosts or None, target_parameters=parameters or None)
    kopt.peft.get_peft_model(fresh, adapter)
    rng = np.random.default_rng(2)
    for layer in adapters_of(fresh).hosts.values():
        for variable in layer.weights_of["default"].values():
            variable.assign(variable.numpy() + rng.normal(size=variable.shape) * 0.05)
    ours = peers.keras_output(fresh)
    found["effect"] = min(found["effect"], float(np.abs(ours - reference).max()))
    kopt.peft.save_pretrained(fresh, folder / "ours", base_model=peers.folder)
    back = peft.PeftModel.from_pretrained(peers.torch_model(base=not language), str(folder / "ours")).eval()
    found["out"] = float(np.abs(peers.torch_output(back) - ours).max())
    if not language and case.model.partition("For")[1]:
        kopt.peft.save_pretrained(fresh, folder / "below", base_model=peers.folder, task_type="SOME_HEAD")
        below = peft.PeftModel.from_pretrained(peers.torch_model(base=False), str(folder / "below")).eval()
        inside = below.base_model.model.base_model
        found["head"] = float(np.abs(peers.torch_output(inside) - ours).max())
    return found
