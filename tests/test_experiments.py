"""The paper's comparison at toy size, from the command to tables and figures."""

import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from experiments.paper import __main__ as reproduce
from experiments.paper import comparison, recipe, redraw, spectrum
from experiments.paper import figures as paper_figures
from svda_jax.devices.timing import spread
from svda_jax.run import runs
from svda_jax.run.runs import read_history
from svda_jax.run.session import Session

FIGURES = (
    "figure_1_accuracy",
    "figure_2_time",
    "figure_3_indicators_by_epoch",
    "figure_4_indicators_by_layer",
)


@pytest.fixture(scope="module")
def keep():
    """What one test trained, for the next."""
    return {}


@pytest.fixture
def copied(keep, two_devices, tmp_path_factory, monkeypatch):
    """Trains each attention once, for so many epochs; other runs are copies of it with
    another config."""
    train = comparison.train_and_evaluate

    def copy(config, workdir):
        kind = config.model.attention, config.num_epochs
        if kind not in keep:
            keep[kind] = tmp_path_factory.mktemp("trained") / config.model.attention
            train(config, keep[kind])
        shutil.copytree(keep[kind], workdir)
        runs.config_path(workdir).unlink()
        runs.create_workdir(config, workdir)

    monkeypatch.setattr(comparison, "train_and_evaluate", copy)


def run(*argv):
    reproduce.main(["reproduce", *argv])


def cells(page, name):
    """The numbers of a table's row, cell by cell."""
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [re.findall(r"-?[\d.]+", cell) for cell in row.split("|")[2:-1]]


def test_comparison_from_command_to_table(
    tmp_path, arguments, copied, no_report_pictures, monkeypatch
):
    run("--config=configs/digits.py", *arguments("--seeds=2", "--controls"))
    out = tmp_path / "out" / "digits"
    page = (out / "README.md").read_text()
    histories = {
        attention: [
            read_history(tmp_path / "runs" / f"digits-{attention}-{seed}")
            for seed in range(2)
        ]
        for attention in ("softmax", "svda")
    }
    for name, read in {
        "accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
        "effective rank of the score": lambda h: h["score_rank"][-1].mean(),
        "angular alignment": lambda h: h["indicators"][-1, 3].mean(),
        "seconds an epoch": lambda h: h["epoch_seconds"].median(),
    }.items():
        values = {
            attention: np.array([float(read(h)) for h in hs])
            for attention, hs in histories.items()
        }
        row = cells(page, re.escape(name).replace("\\", ""))
        for cell, attention in zip(row, values, strict=False):
            mean, spread = map(float, cell)
            assert mean == pytest.approx(values[attention].mean(), abs=1e-3)
            assert spread == pytest.approx(values[attention].std(ddof=1), abs=1e-3)
        difference = float(row[2][0])
        expected = np.mean(values["svda"] - values["softmax"])
        assert difference == pytest.approx(expected, abs=1e-3)
    for seed in range(2):
        assert float(cells(page, str(seed))[1][0]) == pytest.approx(
            100 * float(histories["svda"][seed]["eval_accuracy"][-1]), abs=0.01
        )
    for name in ("config.json", "report.html", "digits-svda-1.nc"):
        assert (out / name).exists()
    for control in reproduce.CONTROL_NAMES.values():
        assert control in page
    copied = xr.load_dataset(out / "digits-svda-1.nc", engine="scipy")
    assert copied.identical(histories["svda"][1])
    for name in FIGURES:
        assert f"({name}.png)" in page
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 400
        assert ET.parse(out / f"{name}.svg").getroot().tag.endswith("svg")

    # Drawn anew from what lies there it is the same, trained and measured is nothing.
    def contents():
        names = (p for p in out.iterdir() if p.name != "figure_2_time.svg")  # rounded
        return {p.name: p.read_bytes() for p in names if p.suffix != ".png"}

    before = contents()
    for path in [*out.glob("figure_*"), out / "report.html"]:
        path.unlink()
    monkeypatch.delattr(comparison, "train_and_evaluate")
    monkeypatch.delattr(reproduce, "measure_overhead")
    folders = arguments()[:2]
    run("--redraw", *folders)
    assert contents() == before
    overhead = redraw.read(out, tmp_path / "runs").overhead
    assert f"| time of a step over softmax's | 1 | {overhead} |" in page
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    (out / "figure_1_accuracy.svg").unlink()
    run("--redraw", "--config=configs/digits.py", *folders)
    assert contents() == before


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(SystemExit, match="has no results to draw"):
        run("--redraw", f"--out={tmp_path}")
    with pytest.raises(SystemExit, match="digits has no results to draw"):
        run("--redraw", "--config=configs/digits.py", f"--out={tmp_path}")


@pytest.fixture
def quick_results(monkeypatch):
    """No report, empty figures, no times of steps: the first test has them."""

    def save(figure, path):
        for ending in (".svg", ".png"):
            path.with_suffix(ending).touch()

    monkeypatch.setattr(paper_figures, "save", save)
    monkeypatch.setattr(redraw, "write_report", lambda *args, **options: None)
    monkeypatch.setattr(reproduce, "measure_overhead", lambda *args: spread([1.0]))


def test_data_sets_share_figures_and_finished_runs_stay(
    tmp_path, arguments, copied, quick_results, monkeypatch
):
    (tmp_path / "small_digits.py").write_text(
        "from svda_jax.config import recipe\n\n"
        "def get_config():\n    return recipe('digits')\n"
    )
    argv = ["--config=configs/digits.py", f"--config={tmp_path / 'small_digits.py'}"]
    run(*argv, *arguments("--seeds=1"))
    for name in FIGURES:
        for ending in ("svg", "png"):
            assert (tmp_path / "out" / f"{name}.{ending}").exists()
    monkeypatch.delattr(comparison, "train_and_evaluate")  # nothing is trained twice
    run(*argv, *arguments("--seeds=1"))


def test_killed_comparison_goes_on_to_the_same_end(
    tmp_path, arguments, two_devices, quick_results, monkeypatch, capsys
):
    """It ends in the second run at once, which is all that a killed one can do."""

    class Killed(BaseException):
        pass

    def record(session, step, *args):
        if session.workdir.name == "digits-svda-0" and step == 13:
            raise Killed
        return kept(session, step, *args)

    argv = ["--config=configs/digits.py", *arguments("--seeds=1", num_epochs=6)]
    kept = Session.record
    with monkeypatch.context() as patched:
        patched.setattr(Session, "record", record)
        with pytest.raises(Killed):
            run(*argv)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    run(*argv)
    resumed = capsys.readouterr().out
    assert resumed.count("resuming at step 10") == 1
    assert resumed.count("  loss ") == 3  # of the last epochs of the second run
    page = (tmp_path / "out" / "digits" / "README.md").read_text()
    for attention, accuracy in zip(
        ("softmax", "svda"), cells(page, "accuracy (%)"), strict=False
    ):
        history = xr.load_dataset(
            tmp_path / "out" / "digits" / f"digits-{attention}-0.nc", engine="scipy"
        )
        # Every epoch once; one is 100 / 32 steps.
        ends = np.ceil(np.arange(1, 7) * 100 / 32)
        np.testing.assert_array_equal(history["step"], ends)
        assert float(accuracy[0]) == pytest.approx(
            100 * float(history["eval_accuracy"][-1]), abs=1e-3
        )


def test_a_run_that_fails_is_said_and_the_others_stay(
    tmp_path, arguments, copied, quick_results, monkeypatch
):
    train = comparison.train_and_evaluate

    def fail_once(config, workdir):
        if workdir.name == "digits-svda-1":
            raise FloatingPointError("loss is not finite at step 7")
        train(config, workdir)

    monkeypatch.setattr(comparison, "train_and_evaluate", fail_once)
    with pytest.raises(SystemExit, match="error: 1 runs failed"):
        run("--config=configs/digits.py", *arguments("--seeds=2"))
    page = (tmp_path / "out" / "digits" / "README.md").read_text()
    assert "**digits-svda-1 failed** and is in no mean: loss is not finite" in page
    assert "| 1 | " in page
    assert next(s for s in page.splitlines() if s.startswith("| 1 |")).endswith(
        "| failed |"
    )
    accuracy = read_history(tmp_path / "runs" / "digits-svda-0")["eval_accuracy"][-1]
    (mean,) = cells(page, "accuracy (%)")[1]
    assert float(mean) == pytest.approx(100 * float(accuracy), abs=1e-3)
    assert not (tmp_path / "out" / "digits" / "digits-svda-1.nc").exists()


def test_study_of_what_decides_the_spectra(tmp_path, arguments, copied):
    options = {"dataset.train_split": "train", "batch_size": 256}
    argv = arguments("--seeds=1", **options, num_epochs=1)
    spectrum.main(["spectrum", "--config=configs/digits.py", *argv])
    out = tmp_path / "out" / "spectrum" / "digits"
    page = (out / "README.md").read_text().partition("## Widths")[2]
    histories = {
        name: read_history(tmp_path / "runs" / f"digits-study-{name}-0")
        for name in ("base-svda", "quarter-softmax", "entropy-0.1-svda")
    }
    for row, history in zip(
        ("as the config has it, SVDA", "a quarter of the images, softmax"),
        histories.values(),
        strict=False,
    ):
        last = history.isel(step=-1)
        p = last.weight_spectrum / last.weight_spectrum.sum("direction")
        by_weights = np.exp(-(p * np.log(p)).sum("direction")).mean()
        found = [float(cell[0]) for cell in cells(page, row)[1:]]
        expected = [
            100 * last.eval_accuracy,
            last.indicators.sel(indicator="effective_rank").mean(),
            by_weights,
            last.score_rank.mean(),
            last.score_strength.mean(),
        ]
        np.testing.assert_allclose(found, [float(x) for x in expected], atol=0.006)
    config = runs.load_config(tmp_path / "runs" / "digits-study-quarter-softmax-0")
    assert (config.dataset.train_split, config.num_epochs) == ("train[:25%]", 4)
    config = runs.load_config(tmp_path / "runs" / "digits-study-entropy-0.1-svda-0")
    assert config.score_entropy_weight == 0.1
    assert (out / "figure_rates.svg").exists()
    assert (out / "figure_ranks.svg").exists()


def test_a_part_of_the_study(tmp_path, arguments, copied):
    argv = arguments("--seeds=1", "--part=pressure")
    spectrum.main(["spectrum", "--config=configs/digits.py", *argv])
    out = tmp_path / "out" / "spectrum" / "digits"
    assert len(list(out.glob("*.nc"))) == 2 + 2 * len(spectrum.WEIGHTS)
    assert not (out / "figure_rates.svg").exists()
    assert "figure_rates" not in (out / "README.md").read_text()


def test_what_each_part_of_a_recipe_gives(tmp_path, arguments, copied):
    argv = ["recipe", "--config=configs/digits.py", *arguments(ema_decay=0.5)]
    recipe.main(argv)
    (out,) = (tmp_path / "out" / "recipe").iterdir()
    found = tmp_path / "runs"
    config = runs.load_config(found / "digits-recipe-rate-2-svda-0")
    base = runs.load_config(found / "digits-recipe-softmax-0")
    assert config.learning_rate == 2 * base.learning_rate
    assert base.dataset.holdout == 0.1  # the test split has no say
    assert runs.load_config(found / "digits-recipe-no-ema_decay-0").ema_decay == 0
    plain = runs.load_config(found / "digits-recipe-plain-0")
    assert not any([plain.augment.affine, plain.label_smoothing, plain.ema_decay])
    accuracy = read_history(found / "digits-recipe-svda-0")["eval_accuracy"][-1]
    page = (out / "README.md").read_text()
    (shown,) = cells(page, "the recipe, SVDA")[0]
    assert float(shown) == pytest.approx(100 * float(accuracy), abs=0.01)
    assert len(list(out.glob("*.nc"))) == len(list(found.iterdir()))
    with pytest.raises(SystemExit, match="choose a recipe by the test split"):
        recipe.main([*argv, "--config.dataset.holdout=0"])


def test_shares_are_of_a_whole_split(arguments):
    with pytest.raises(SystemExit, match=r"train\[:100\] must be a whole split"):
        spectrum.main(["spectrum", "--config=configs/digits.py", *arguments()])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=configs/digits.py", "--seeds=0"], "--seeds=0 must be positive"),
        (["--config=nope.py"], "there is no config file nope.py"),
        ([], "which config"),
        (["--config=configs/digits.py"] * 2, "same name: digits, digits"),
        (["--config=configs/digits.py", "--config.sed=1"], "no key sed"),
    ],
)
def test_bad_input_ends_in_one_line(argv, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(*argv, f"--runs={tmp_path}", f"--out={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_results_of_another_config_are_not_overwritten(
    tmp_path, arguments, copied, quick_results
):
    run("--config=configs/digits.py", *arguments("--seeds=1"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    argv = arguments("--seeds=1", weight_decay=0.5)
    with pytest.raises(SystemExit, match=r"out.digits holds a run with weight_decay"):
        run("--config=configs/digits.py", *argv)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
