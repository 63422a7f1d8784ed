"""The report of runs whose names, classes and numbers are as bad as they come."""

import shutil

import folders
import numpy as np
import pages
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from svda_jax.look import evaluate, report
from svda_jax.look.report import write_report
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("two_devices")

CLASSES = ["<script>alert(1)", "a" * 80, "\u9577\u3044\u540d\u524d \N{SNOWMAN}"]


@pytest.fixture(scope="module")
def keep():
    """What one test made, for the next."""
    return {}


@pytest.fixture
def workdir(keep, make_config, tmp_path_factory):
    """A run on colour images that are no squares, with a class token, one epoch."""
    if "workdir" not in keep:
        tmp_path = tmp_path_factory.mktemp("hostile")
        for part in ("train", "val"):
            folders.write_images(tmp_path / "images" / part, CLASSES, 4, size=(5, 21))
        folders.run(tmp_path / "images", tmp_path, name="hostile")
        config = make_config(
            num_epochs=1,
            batch_size=6,
            model__pool="cls",
            dataset__name="hostile",
            dataset__data_dir=str(tmp_path / "tfds"),
            dataset__train_split="train",
            dataset__eval_split="validation",
            dataset__num_classes=3,
            dataset__streaming=True,
            dataset__channels=3,
            dataset__mean=(0.5,) * 3,
            dataset__std=(0.25,) * 3,
        )
        workdir = tmp_path / ("x" * 90)
        train_and_evaluate(config, workdir)
        keep["workdir"] = workdir
    return keep["workdir"]


@pytest.mark.filterwarnings("error")  # a figure too small for its labels warns
def test_page_of_long_names_fits_a_narrow_screen(workdir, browser, output_dir):
    page = write_report(workdir)
    assert "<script>alert(1)" not in page.read_text()
    pages.show(browser, page.as_uri(), width=500)
    opened = "document.querySelectorAll('details').forEach(d => { d.open = true })"
    browser.execute_script(opened)
    assert pages.overflow(browser) == 0
    assert browser.get_log("browser") == []
    said = browser.find_element("css selector", ".queries [aria-live]").text
    assert said.startswith("From the class token. Strongest: layer ")
    browser.save_screenshot(str(output_dir / "report_hostile_500.png"))


def test_numbers_that_are_not_finite_are_said_in_words(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    history = runs.read_history(tmp_path / "run")
    for name in ("eval_loss", "eval_accuracy", "indicators", "score_spectrum"):
        history[name][-1] = np.nan
    history.to_netcdf(tmp_path / "run/history.nc", engine="scipy")
    page = write_report(tmp_path / "run").read_text()
    assert "nan" not in page[: page.index('id="accuracy"')].split("<details")[0]
    table = page[page.index('class="indicators"') :]
    assert "nan" not in table[: table.index("</table>")]
    assert page.count("not a number") == 2 + 6
    assert "of the score" not in page[: page.index('id="spectra"')]


def test_labels_of_a_confusion_matrix_leave_it_room():
    names = [*CLASSES[:2], "0", "golden retriever (female, young, of unknown pedigree)"]
    figure = evaluate.draw_confusion(np.eye(4, dtype=int), names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.axes[0].get_window_extent()
    assert min(box.width, box.height) > 4 * 0.3 * figure.dpi
    for label in figure.axes[0].get_yticklabels() + figure.axes[0].get_xticklabels():
        assert label.get_window_extent(canvas.get_renderer()).min.min() >= 0
    assert figure.axes[0].get_yticklabels()[1].get_text() == 21 * "a" + "..."


def test_runs_of_other_settings_are_not_compared_by_seed(make_config):
    def describe(attention, seed, **changes):
        config = make_config(model__attention=attention, seed=seed, **changes)
        return {
            "name": f"{attention} {seed}",
            "config": config,
            "attention": attention,
            "options": report.flatten(config),
            "last": {"eval_accuracy": 0.5 + seed / 10 + (attention == "svda")},
            "score": {},
            "images": "none",
        }

    both = [describe(a, s) for a in ("svda", "softmax") for s in (0, 1)]
    assert len(report._judge(both)) == 1
    wide = [describe(a, s, model__width=32) for a in ("svda", "softmax") for s in (1,)]
    assert report._judge([*both[::2], *wide]) == []
