"""The pages of TensorBoard beside the scalars: flags, texts, bands."""

import numpy as np
import pytest
from events import fit, read, regression, run
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

import kopt
from kopt.tensorboard import OptimizerStats


def hparams(events, tag):
    content = events.summary_metadata[f"_hparams_/{tag}"].plugin_data.content
    return getattr(plugin_data_pb2.HParamsPluginData.FromString(content), tag)


def test_hparams_page_shows_flags_and_final_metrics(tmp_path):
    flags = {"lr": 0.1, "epochs": np.int64(3), "nesterov": True, "name": "a", "shape": (2, 3), "none": None}
    stats = OptimizerStats(tmp_path, hparams=flags, run_name="first")
    fit(regression(kopt.SGD(0.1)), stats)
    assert not any("hparams" in tag for tag in read(tmp_path)[1].summary_metadata)  # of a run that is done
    stats.finish({"accuracy": np.float32(0.5)}, {"seed": np.int32(7)}, ["error"])
    scalars, events = read(tmp_path)
    assert scalars["accuracy"] == {6: 0.5} and list(scalars["Loss/train"]) == [1, 2, 3, 4, 5, 6]  # one run
    start = hparams(events, "session_start_info")
    assert start.group_name == "first" and start.start_time_secs > 1e9
    expected = {"lr": 0.1, "epochs": 3.0, "nesterov": True, "name": "a", "shape": "(2, 3)", "seed": 7.0}
    assert {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()} == expected
    assert hparams(events, "session_end_info").status == api_pb2.Status.Value("STATUS_SUCCESS")
    page = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/experiment"].plugin_data.content
    ).experiment
    assert [info.name for info in page.hparam_infos] == list(expected)
    assert [info.name.tag for info in page.metric_infos] == ["accuracy", "error"]  # and not each scalar


def test_text_page_shows_parameters_arguments_and_notes(tmp_path):
    model = regression(kopt.SGD(0.1, multipliers=[("kernel$|embedding", 0.5)]))
    fit(model, OptimizerStats(tmp_path, text={"notes": "**hello**"}))
    _, events = read(tmp_path)
    pages = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("notes", "parameters", "optimizer")
    }
    assert pages["notes"] == "**hello**"
    assert "4 of 4 parameters are trainable (100 %)" in pages["parameters"]
    assert "| `model/linear/kernel` | [3, 1] | float32 | True | 3 |" in pages["parameters"]
    assert pages["optimizer"].startswith("SGD\n\n| argument | value |\n| --- | --- |\n")
    assert "| learning_rate | 0.1 |" in pages["optimizer"]
    assert r"kernel$\|embedding" in pages["optimizer"]


def test_text_page_shows_schedules_as_they_are_written(tmp_path):
    schedule = kopt.schedules.WarmupLinear(0.1, steps=10, warmup=2)
    run(tmp_path, kopt.SGD(schedule))
    page = read(tmp_path)[1].Tensors("optimizer")[0].tensor_proto.string_val[0].decode()
    assert "| learning_rate | WarmupLinear(peak_learning_rate=0.1, " in page and "steps=10" in page
    assert "class_name" not in page


def layout(log_dir):
    _, events = read(log_dir)
    tensor = events.Tensors("custom_scalars__config__")[0].tensor_proto
    return layout_pb2.Layout.FromString(tensor.string_val[0])


def test_custom_scalars_page_names_existing_tags(tmp_path):
    scalars, _ = run(tmp_path, kopt.AdaBound())
    series = [s for c in layout(tmp_path).category for chart in c.chart for s in chart.margin.series]
    assert series[0].lower == "adabound/lower_bound"
    assert {tag for s in series for tag in (s.value, s.lower, s.upper)} <= set(scalars)
    run(tmp_path / "sgd", kopt.SGD())
    with pytest.raises(KeyError):  # one rate for all elements makes no band
        layout(tmp_path / "sgd")
