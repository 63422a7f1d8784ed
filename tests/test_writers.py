"""The history file and TensorBoard's events."""

import re

import numpy as np
import pytest
import xarray as xr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data

from svda_jax import UserError
from svda_jax.models.indicators import INDICATORS
from svda_jax.run.console import evaluation_line
from svda_jax.run.events import SCALARS, EventWriter
from svda_jax.run.history import VARIABLES, History
from svda_jax.run.runs import read_class_names, read_history, write_class_names
from svda_jax.train.compiled import draw_pictures

L, H, K, C = 2, 3, 5, 7


@pytest.fixture
def make_values(rng):
    def make(number):
        values = {name: np.float32(number) for name in VARIABLES}
        for name in ("spectrum", "score_spectrum", "weight_spectrum"):
            values[name] = np.float32(rng.normal(size=(L, H, K)) + number)
        values["indicators"] = np.float32(rng.uniform(size=(6, L, H)))
        for name in VARIABLES:
            if VARIABLES[name][0] == ("layer", "head"):
                values[name] = np.float32(rng.integers(1, K, size=(L, H)))
        values["class_accuracy"] = np.float32(rng.uniform(size=C))
        values["confusion"] = rng.integers(9, size=(C, C)).astype(np.int32)
        return values

    return make


def test_the_line_of_an_evaluation_has_80_characters_at_most(make_values):
    values = {**make_values(12.5), "eval_accuracy": 1.0, "images_per_second": 123456}
    line = evaluation_line(1_234_567, 1200.0, values)
    assert "1,234,567  loss 12.5000  eval 12.5000, 100.00%  123,456 images/s" in line
    assert len(line) <= 84  # of a run of a million steps; of others
    assert len(evaluation_line(99_999, 300.0, make_values(2.5))) <= 80


def test_a_rate_that_was_not_measured_is_not_shown(
    tmp_path, make_values, make_config, caplog
):
    values = {**make_values(0.5), "images_per_second": float("nan")}
    assert evaluation_line(3, 1.0, values).endswith("eval 0.5000, 50.00%")
    with EventWriter(tmp_path, make_config(), last_step=0) as writer:
        writer.write(3, values)
    tags = set(read_events(tmp_path).Tags()["scalars"])
    assert {SCALARS[tag] for tag in SCALARS.keys() - tags} == {"images_per_second"}
    assert not caplog.records  # tensorboardX warns of what is no number


def test_a_spectrum_of_one_number_too_large_for_bins_has_no_histogram(
    tmp_path, make_values, make_config
):
    values = make_values(0.5)
    values["spectrum"][0] = 1e38
    values["spectrum"][1] *= 1e38
    with EventWriter(tmp_path, make_config(), last_step=0) as writer:
        writer.write(3, values)
    found = read_events(tmp_path).Tags()["histograms"]
    assert "spectrum/layer_1" not in found
    assert {"spectrum/layer_2", "score_spectrum/layer_1"} <= set(found)


def test_history_is_one_labelled_data_set(tmp_path, make_values):
    history = History(tmp_path, last_step=0, attrs={"device": "cpu"})
    rows = [make_values(0.5), make_values(np.nan)]
    for step, values in zip((45, 90), rows, strict=True):
        history.append(step, step / 30, values)
    with xr.open_dataset(tmp_path / "history.nc") as data:
        np.testing.assert_array_equal(data["step"], [45, 90])
        np.testing.assert_array_equal(data["epoch"], [1.5, 3.0])
        np.testing.assert_array_equal(data["eval_loss"], [0.5, np.nan])
        assert data["spectrum"].dims == ("step", "layer", "head", "direction")
        spectra = [values["spectrum"] for values in rows]
        np.testing.assert_array_equal(data["spectrum"], spectra)
        assert data["epoch_seconds"].attrs["units"] == "s"
        assert all(data[name].attrs["long_name"] for name in VARIABLES)


def test_history_has_classes_by_name_and_the_last_confusion(tmp_path, make_values):
    names = ["ant", "café", "$x$", "", "a b", "6", "é"]
    write_class_names(tmp_path, names)
    rows = [make_values(1), make_values(2), make_values(3)]
    for step, values in enumerate(rows[:2], start=1):
        History(tmp_path, last_step=step, attrs={}).append(step, step, values)
    # An attempt that was cut off: what it counted is forgotten with it.
    for last, values in ((1, rows[2]), (1, rows[1])):
        History(tmp_path, last_step=last, attrs={}).append(2, 2.0, values)
        data = read_history(tmp_path)
        assert data["confusion"].dims == ("true", "predicted")
        assert data["confusion"].dtype == np.int32
        np.testing.assert_array_equal(data["confusion"], values["confusion"])
        of_one = data["class_accuracy"].sel({"class": "café"})
        expected = [row["class_accuracy"][1] for row in (rows[0], values)]
        np.testing.assert_array_equal(of_one, expected)
    many = {k: v for k, v in rows[0].items() if k != "confusion"}
    History(tmp_path, last_step=2, attrs={}).append(3, 3.0, many)
    assert "confusion" not in read_history(tmp_path)


def test_history_of_an_older_version_goes_on(tmp_path, make_values):
    """What it did not measure is missing in its rows alone."""
    history = History(tmp_path, last_step=0, attrs={})
    history.append(1, 1.0, make_values(1))
    older = history.data.drop_vars("score_spectrum").drop_dims(["class", "true"])
    older.to_netcdf(history.path, engine="scipy")
    History(tmp_path, last_step=1, attrs={}).append(2, 2.0, values := make_values(2))
    with xr.open_dataset(tmp_path / "history.nc") as data:
        assert np.isnan(data["score_spectrum"][0]).all()
        np.testing.assert_array_equal(
            data["score_spectrum"][1], values["score_spectrum"]
        )
        assert not np.isnan(data["spectrum"]).any()


def test_history_is_cut_at_the_restored_step(tmp_path, make_values):
    history = History(tmp_path, last_step=0, attrs={"device": "cpu"})
    for step in (1, 2, 3):
        history.append(step, step, make_values(step))
    resumed = History(tmp_path, last_step=2, attrs={})
    resumed.append(4, 4.0, make_values(4))
    data = read_history(tmp_path)
    np.testing.assert_array_equal(data["step"], [1, 2, 4])
    np.testing.assert_array_equal(data["train_loss"], [1, 2, 4])
    again = History(tmp_path, last_step=0, attrs={"device": "cpu"})
    again.append(1, 1.0, make_values(9))
    np.testing.assert_array_equal(read_history(tmp_path)["train_loss"], [9])


def test_a_missing_and_a_damaged_history(tmp_path, make_values):
    with pytest.raises(UserError, match="no evaluation yet"):
        read_history(tmp_path)
    History(tmp_path, last_step=0, attrs={"device": "cpu"}).append(
        1, 1.0, make_values(1)
    )
    path = tmp_path / "history.nc"
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:-50], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"history.nc is damaged"):
            read_history(tmp_path)


@pytest.mark.parametrize("damage", ["3", "[1]", '{"a": "b"}', "[", "\xff"])
def test_damaged_names_of_classes(tmp_path, damage):
    write_class_names(tmp_path, ("a", "b"))
    assert read_class_names(tmp_path) == ("a", "b")
    (tmp_path / "classes.json").write_text(damage, "latin-1")
    with pytest.raises(UserError, match=r"classes.json is damaged: "):
        read_class_names(tmp_path)


def test_history_on_a_full_disk_is_said_and_the_old_one_stays(
    tmp_path, make_values, full_disk
):
    history = History(tmp_path, last_step=0, attrs={"device": "cpu"})
    history.append(1, 1.0, make_values(1))
    with (
        full_disk(),
        pytest.raises(UserError, match=r"cannot write .*history.nc: File"),
    ):
        history.append(2, 2.0, make_values(2))
    assert read_history(tmp_path)["step"].values.tolist() == [1]


def test_events_on_a_full_disk_are_said(tmp_path, make_values, make_config, full_disk):
    with (
        EventWriter(tmp_path, make_config(), last_step=0) as writer,
        full_disk(),
        pytest.raises(UserError, match=r"cannot write events to .*: File too large"),
    ):
        writer.write(1, make_values(1))


def read_events(path):
    events = EventAccumulator(str(path))
    events.Reload()
    return events


def test_events_hold_scalars_histograms_and_hyperparameters(
    tmp_path, make_values, make_config
):
    config = make_config()
    values = make_values(0.5)
    with EventWriter(tmp_path, config, last_step=0) as writer:
        writer.write(45, values)
    events = read_events(tmp_path)
    tags = set(events.Tags()["scalars"])
    assert tags > set(SCALARS)
    assert len(tags) == len(SCALARS) + 6 * (1 + L)
    for tag, name in SCALARS.items():
        mean = pytest.approx(np.mean(values[name]))
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [(45, mean)]
    assert events.Tags()["histograms"] == [
        f"{name}/layer_{layer}"
        for name in ("spectrum", "score_spectrum")
        for layer in (1, 2)
    ]
    histogram = events.Histograms("spectrum/layer_2")[0].histogram_value
    assert histogram.num == H * K
    assert histogram.sum == pytest.approx(values["spectrum"][1].sum(), rel=1e-5)
    for i, name in enumerate(INDICATORS):
        indicator = values["indicators"][i]
        mean = events.Scalars(f"indicators/{name}/mean")[0].value
        assert mean == pytest.approx(indicator.mean())
        layer = events.Scalars(f"indicators/{name}/layer_2")[0].value
        assert layer == pytest.approx(indicator[1].mean())
    plugin = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"model.attention" in plugin
    assert b"svda" in plugin


def test_the_table_of_hyperparameters_begins_with_what_is_not_the_recipe_s(
    tmp_path, make_config
):
    with EventWriter(tmp_path, make_config(learning_rate=0.5), last_step=0):
        pass
    plugin = read_events(tmp_path).PluginTagToContent("hparams")
    experiment = parse_experiment_plugin_data(plugin["_hparams_/experiment"])
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert first >= {"model.attention", "seed", "learning_rate", "model.width"}
    assert not first & {"augment.affine", "dataset.name", "model.dropout"}
    assert not first & {"dataset.data_dir", "checkpoint.every_epochs"}  # no matter
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["eval/accuracy", "eval/loss", "score/effective_rank"]


def test_charts_of_all_runs_find_each_tag_that_they_are_for(
    tmp_path, make_values, make_config
):
    with EventWriter(tmp_path, make_config(), last_step=0) as writer:
        writer.write(1, make_values(0.5))
    events = read_events(tmp_path)
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    found = {
        (category.title, chart.title): [
            tag for tag in tags if any(re.match(p, tag) for p in chart.multiline.tag)
        ]
        for category in layout.category
        for chart in category.chart
    }
    for (category, title), found_tags in found.items():
        if category == "runs":
            assert found_tags == [title]
        else:
            layers = [f"indicators/{title}/layer_{layer}" for layer in (1, 2)]
            assert found_tags == layers
    assert {title for category, title in found if category == "layers"} == {*INDICATORS}


def test_events_behind_the_restored_step_are_dropped(
    tmp_path, make_values, make_config
):
    with EventWriter(tmp_path, make_config(), last_step=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, make_values(step))
    with EventWriter(tmp_path, make_config(), last_step=2) as writer:
        writer.write(4, make_values(4))
    steps = [event.step for event in read_events(tmp_path).Scalars("eval/loss")]
    assert steps == [1, 2, 4]


def test_pictures_and_the_number_of_tags(tmp_path, make_config, rng):
    """Twelve layers of twelve heads stay under 150 tags."""
    values = {name: np.float32(0.5) for name in VARIABLES}
    for name in ("spectrum", "score_spectrum"):
        values[name] = np.float32(rng.normal(size=(12, 12, 16)))
    values["indicators"] = np.float32(rng.uniform(size=(6, 12, 12)))
    images = rng.integers(0, 256, size=(4, 8, 8, 1)).astype(np.uint8)
    maps = np.float32(rng.uniform(size=(4, 12, 12, 4, 4)))
    with EventWriter(tmp_path, make_config(), last_step=0) as writer:
        writer.write(45, values)
        titles = ["true: 1\npredicted: 7"] * 4
        writer.write_pictures(45, draw_pictures(images, maps, titles, "svda", values))
    tags = read_events(tmp_path).Tags()
    names = [f"indicators/{name}/heads" for name in INDICATORS]
    names += [
        "spectrum/heads",
        "score_spectrum/heads",
        *(f"attention/image_{i}" for i in range(1, 5)),
    ]
    assert sorted(tags["images"]) == sorted(names)
    assert sum(len(tags[kind]) for kind in ("scalars", "images", "histograms")) < 150


def test_history_does_not_begin_anew_where_it_was_taken_away(tmp_path, make_values):
    history = History(tmp_path, last_step=0, attrs={"device": "cpu"})
    history.append(1, 1.0, make_values(1))
    (tmp_path / "history.nc").unlink()
    with pytest.raises(UserError, match="what was written is gone"):
        history.append(2, 2.0, make_values(2))
    assert not (tmp_path / "history.nc").exists()
