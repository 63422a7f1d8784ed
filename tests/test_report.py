"""The report: what it shows, what it refuses, and how a browser takes it."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from svda_jax import UserError
from svda_jax.look import report
from svda_jax.look.report import main, write_report
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture(scope="module")
def keep():
    """What one test made, for the next."""
    return {}


@pytest.fixture
def workdirs(keep, make_config, tmp_path_factory):
    """A run of each attention, trained once for this module."""
    for attention in ("svda", "softmax"):
        if attention not in keep:
            workdir = tmp_path_factory.mktemp("runs") / f"<b>{attention} & $x$"
            config = make_config(model__attention=attention)
            train_and_evaluate(config, workdir)
            keep[attention] = workdir
    return keep


@pytest.fixture
def both(workdirs, keep):
    """The page of both runs, written once."""
    if "page" not in keep:
        out = workdirs["svda"].parent / "both.html"
        keep["page"] = write_report(
            workdirs["svda"], compare=workdirs["softmax"], out=out
        )
    return keep["page"]


def test_report_says_what_the_history_says(workdirs, capsys):
    main(["--workdir", str(workdirs["svda"])])
    path = workdirs["svda"] / "report.html"
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    last = runs.read_history(workdirs["svda"]).isel(step=-1)
    assert f"{100 * float(last['eval_accuracy']):.2f} %" in page
    for name in last["indicator"].values:
        values = last["indicators"].sel(indicator=name)
        assert f"{float(values.mean()):.3f} &plusmn; {float(values.std()):.3f}" in page
    assert "of 77 images are classified wrongly" in page
    for name in ("score_entropy", "score_rank", "score_sparsity", "score_strength"):
        values = last[name]
        assert f"{float(values.mean()):.3f} &plusmn; {float(values.std()):.3f}" in page
    confusion = last["confusion"].values
    for name, counts, right in zip(
        last["true"].values, confusion, confusion.diagonal(), strict=True
    ):
        share = f"{100 * right / counts.sum():.2f} %"
        row = f'<td>{name}</td><td class="number">{counts.sum()}</td>'
        assert f'{row}<td class="number">{share}</td>' in page
    # curves, confusion, by epoch, by layer, heat maps, two spectra, 4 attentions,
    # rollout, worst
    assert page.count("data:image/png;base64,") == 13


def test_report_on_a_run_of_an_older_version(workdirs, tmp_path):
    shutil.copytree(workdirs["svda"], tmp_path / "run")
    history = runs.read_history(tmp_path / "run")
    names = [name for name in history.data_vars if "score" in name]
    history = history.drop_vars(names).drop_dims(["class", "true", "predicted"])
    history.to_netcdf(tmp_path / "run/history.nc", engine="scipy")
    page = write_report(tmp_path / "run").read_text()
    assert "of the score" not in page
    assert "Class by class" not in page
    both = write_report(workdirs["svda"], compare=tmp_path / "run").read_text()
    assert "strength of the score" in both


def test_two_runs_stand_side_by_side(both):
    page = both.read_text()
    assert page.count("data:image/png;base64,") == 1 + 2 * 12
    assert "differ in <code>model.attention</code> (svda and softmax)" in page
    assert "each in a scale of its own" in page


def test_runs_of_one_name_are_told_apart(workdirs, tmp_path, monkeypatch):
    drawn = []
    curves = report.figures.curves
    monkeypatch.setattr(
        report.figures, "curves", lambda runs: curves(drawn.append(list(runs)) or runs)
    )
    monkeypatch.setattr("svda_jax.look.style.to_png", lambda figure, dpi: b"")
    other = shutil.copytree(workdirs["softmax"], tmp_path / workdirs["svda"].name)
    write_report(workdirs["svda"], compare=other, out=tmp_path / "page.html")
    assert [[run.label for run in runs] for runs in drawn] == [
        [str(workdirs["svda"]), str(other)]
    ]


def test_names_are_escaped(both):
    page = both.read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;svda &amp; $x$" in page


def test_run_without_checkpoint_has_a_report_without_pictures(workdirs, tmp_path):
    shutil.copytree(workdirs["svda"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"holdout": 0.0', '"holdout": 0.1'))
    page = write_report(tmp_path / "run").read_text()
    assert "No pictures" in page
    assert "has no checkpoint yet" in page
    assert "evaluated on a hold-out, the last 10 % of train[:100]<" in page


def test_speed_is_that_of_the_whole_run():
    """90 images at 10 a second, after an interval of one step, then 10 at 1."""
    rates = {"images_per_second": ("step", [np.nan, 10.0, 1.0])}
    seconds = {"epoch_seconds": ("step", [np.nan, 5.0, 50.0])}
    history = xr.Dataset({**rates, **seconds}, coords={"step": [1, 10, 11]})
    np.testing.assert_allclose(report._speed(history), (100 / 19, 50 * 19 / 100))


def test_run_without_its_data_set_says_so(workdirs, tmp_path):
    config = runs.load_config(workdirs["svda"])
    with config.unlocked():
        config.dataset.data_dir = str(tmp_path)
    said = report._look_at_images(workdirs["svda"], config)
    assert said == f"data set digits is not in {tmp_path}/digits/1.0.0"


def damage(workdir):
    path = workdir / "history.nc"
    path.write_bytes(path.read_bytes()[:100])


def make_folder(workdir):
    (workdir / "config.json").unlink()
    (workdir / "config.json").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "holds no run"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is damaged"),
        (make_folder, "config.json is damaged: .*Is a directory"),
        (lambda path: (path / "history.nc").unlink(), "has no evaluation yet"),
        (damage, "history.nc is damaged"),
    ],
)
def test_bad_workdir_ends_in_one_line(workdirs, tmp_path, change, message):
    workdir = tmp_path / "run"
    shutil.copytree(workdirs["svda"], workdir)
    change(workdir)
    with pytest.raises(SystemExit, match=message) as exit_:
        main(["--workdir", str(workdir)])
    assert "\n" not in str(exit_.value)


def test_page_that_cannot_be_written(workdirs, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_report(workdirs["svda"], out=tmp_path / "no" / "page.html")


def test_page_in_a_browser(both, browser):
    browser.get(both.as_uri())
    assert browser.get_log("browser") == []
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    requested = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert both.as_uri() in requested
    assert not [url for url in requested if url.startswith(("http", "ws", "ftp"))]
    widths = browser.execute_script(
        "return [...document.images].map(image => image.naturalWidth)"
    )
    assert len(widths) == both.read_text().count("<img") > 20
    assert min(widths) > 100
