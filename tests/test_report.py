"""The report: what it shows, what it refuses, and how a browser takes it."""

import base64
import shutil

import numpy as np
import pages
import pytest
import xarray as xr
from flax import nnx
from selenium.webdriver import ActionChains, Keys

from svda_jax import UserError
from svda_jax.look import report, samples, verdict
from svda_jax.look.maps import look_by_query
from svda_jax.look.report import main, write_report
from svda_jax.models.attention import attention_weights
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
            workdirs["svda"], compare=[workdirs["softmax"]], out=out
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
        decimals = 2 if name == "effective_rank" else 3
        mean, spread = (f"{float(f()):.{decimals}f}" for f in (values.mean, values.std))
        assert f"{mean} &plusmn; {spread}" in page
    assert "of 77 images are classified wrongly" in page
    for name in ("score_entropy", "score_rank", "score_sparsity", "score_strength"):
        values = last[name]
        decimals = 2 if name == "score_rank" else 3
        mean, spread = (f"{float(f()):.{decimals}f}" for f in (values.mean, values.std))
        assert f"{mean} &plusmn; {spread}" in page
    confusion = last["confusion"].values
    for name, counts, right in zip(
        last["true"].values, confusion, confusion.diagonal(), strict=True
    ):
        share = f"{100 * right / counts.sum():.2f} %"
        row = f'<td>{name}</td><td class="number">{counts.sum()}</td>'
        assert f'{row}<td class="number">{share}</td>' in page
    wrong = int(confusion.sum() - confusion.trace())
    assert f"{wrong} of {confusion.sum()} images are classified wrongly, those" in page
    # curves, confusion, by epoch, by layer, heat maps, two spectra, rollout, worst
    assert page.count("<svg ") == 9
    assert page.count('class="queries"') == 4


def test_a_run_that_makes_no_mistake_shows_none(workdirs, tmp_path, monkeypatch):
    def predict(model, data):
        labels = data.get(range(data.num_images))[1]
        return 9.0 * (labels[:, None] == np.arange(10)), labels, np.arange(len(labels))

    monkeypatch.setattr(samples, "predict", predict)
    page = write_report(workdirs["svda"], out=tmp_path / "page.html").read_text()
    assert "images are classified wrongly.</p>" in page
    assert page.count("<svg ") == 8


def test_report_on_a_run_of_an_older_version(workdirs, tmp_path):
    shutil.copytree(workdirs["svda"], tmp_path / "run")
    history = runs.read_history(tmp_path / "run")
    names = [name for name in history.data_vars if "score" in name]
    history = history.drop_vars(names).drop_dims(["class", "true", "predicted"])
    history.to_netcdf(tmp_path / "run/history.nc", engine="scipy")
    page = write_report(tmp_path / "run").read_text()
    assert "of the score" not in page
    assert "Class by class" not in page
    both = write_report(workdirs["svda"], compare=[tmp_path / "run"]).read_text()
    assert "strength of the score" in both


def test_two_runs_stand_side_by_side(both):
    page = both.read_text()
    # Of each run: confusion, heat maps, rollout, worst; five that they share.
    assert page.count("<svg ") == 2 * 4 + 5
    row = "<code>model.attention</code></th><td>svda</td><td>softmax</td></tr>"
    assert f'<tr><th scope="row">{row}' in page
    assert "different quantities and are drawn as shares" in page
    assert page.count("McNemar") == 1


def test_runs_of_one_name_are_told_apart(workdirs, tmp_path, monkeypatch):
    drawn = []
    curves = report.figures.curves
    monkeypatch.setattr(
        report.figures, "curves", lambda runs: curves(drawn.append(list(runs)) or runs)
    )
    monkeypatch.setattr("svda_jax.look.style.to_svg", lambda figure, title: "")
    other = shutil.copytree(workdirs["softmax"], tmp_path / workdirs["svda"].name)
    write_report(workdirs["svda"], compare=[other], out=tmp_path / "page.html")
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
    said = samples.look_at_images(workdirs["svda"], config)
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


def test_the_atlas_beside_a_run_is_linked(workdirs, tmp_path):
    run = tmp_path / "a run"
    shutil.copytree(workdirs["svda"], run)
    (run / "atlas.html").write_text("")
    page = write_report(run, out=tmp_path / "page.html").read_text()
    assert '<a href="a%20run/atlas.html">' in page


def test_verdict_on_the_same_images():
    right = np.array([True] * 60 + [False] * 40)
    also = right.copy()
    also[:10] = False  # ten that the first alone gets right
    also[95] = True
    said = verdict.compare_on_images(("A", right), ("B", also))
    assert said.startswith("A over B: +9.00 points on the same images (+2.")
    # Eleven tosses, at most one of a kind: 2 (1 + 11) / 2^11 = 0.012.
    assert "(McNemar's p = 0.012): a difference on these images" in said
    same = verdict.compare_on_images(("A", right), ("B", right))
    assert "right and wrong on the same ones" in same


def test_verdict_over_seeds():
    """Differences 1, 2, 6: mean 3, and 4.303 x 2.646 / sqrt(3) either way."""
    runs = [
        (attention, seed, {"points": value})
        for seed, difference in enumerate((1, 2, 6))
        for attention, value in (("softmax", 90.0), ("svda", 90.0 + difference))
    ]
    (said,) = verdict.compare_by_seed(runs)
    assert "3 seeds in pairs: +3.00 ± 6.57 points" in said
    assert "no difference shown" in said
    assert verdict.compare_by_seed(runs[:2]) == []
    assert verdict.compare_by_seed([*runs, runs[0]]) == []  # which of the two?
    assert verdict.compare_by_seed([run for run in runs if run[0] == "svda"]) == []


def test_maps_that_are_too_large_are_means_over_squares(monkeypatch):
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(2, 3, 1 + 36, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(samples.pool(maps), maps)
    monkeypatch.setattr(samples, "_MAX_BYTES", 2 * 3 * 10 * 9)
    pooled = samples.pool(maps)
    assert pooled.shape == (2, 3, 1 + 9, 3, 3)
    # Queries and keys 2 and 3 of each side make the second square: rows 0-1 x 2-3.
    queries = maps[1, 2, 1:].reshape(6, 6, 6, 6)[0:2, 2:4, 2:4, 4:6]
    np.testing.assert_allclose(pooled[1, 2, 1 + 1, 1, 2], queries.mean(), rtol=1e-5)
    first = maps[0, 1, 0, :2, :2].mean()
    np.testing.assert_allclose(pooled[0, 1, 0, 0, 0], first, rtol=1e-5)


def test_maps_of_each_query_are_its_rows_of_the_weights(workdirs):
    run = runs.load(workdirs["svda"])
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    graphdef, params = nnx.split(run.model, nnx.Param)
    found = look_by_query(params, images, graphdef=graphdef)
    assert found.shape == (2, 2, 2, 1 + 4, 2, 2)
    _, traces = run.model(images)
    trace = traces[1]
    weights = attention_weights(
        trace.query, trace.key, trace.sigma, scale=trace.scale
    )  # [B, H, N, N]
    np.testing.assert_allclose(
        found[:, 1, :, 1:].reshape(2, 2, 4, 4), 4 * weights, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        found[:, 1, :, 0].reshape(2, 2, 4), 4 * weights.mean(-2), rtol=1e-4
    )


def test_page_in_a_browser(both, browser, output_dir):
    browser.get(both.as_uri())
    assert browser.get_log("browser") == []
    asked, outside = pages.find_requests(browser)
    assert both.as_uri() in asked
    assert not outside
    ids = browser.execute_script(
        "return [...document.querySelectorAll('[id]')].map(e => e.id)"
    )
    assert len(ids) == len(set(ids))
    browser.save_screenshot(str(output_dir / "report.png"))


def test_pointing_at_a_patch_shows_where_it_looks(both, browser, output_dir):
    browser.get(both.as_uri())
    views = browser.find_elements("css selector", ".queries")
    assert len(views) == 2 * 4
    said = [view.find_element("css selector", "[aria-live]") for view in views]
    pixels = "return arguments[0].querySelector('canvas').toDataURL()"
    before = [browser.execute_script(pixels, view) for view in views[:3]]
    assert said[0].text.startswith("All patches' mean. Strongest: layer ")
    buttons = views[0].find_elements("css selector", ".patches button")
    assert len(buttons) == 4
    ActionChains(browser).move_to_element(buttons[2]).perform()
    assert said[0].text.startswith("From row 2, column 1. Strongest: layer ")
    assert said[1].text.startswith("From row 2, column 1.")  # the other run follows
    assert said[2].text.startswith("All patches' mean.")  # another image does not
    after = [browser.execute_script(pixels, view) for view in views[:3]]
    assert [one == two for one, two in zip(before, after, strict=True)] == [
        *(False, False, True)
    ]
    buttons[2].click()
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert said[0].text.startswith("From row 2, column 2.")
    assert buttons[3].get_attribute("aria-pressed") == "true"
    browser.execute_script("arguments[0].scrollIntoView()", views[0])
    views[0].screenshot(str(output_dir / "report_query.png"))
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert said[0].text.startswith("All patches' mean.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500])
def test_page_is_accessible(both, browser, output_dir, scheme, width):
    """By axe-core; and a narrow page scrolls down alone."""
    pages.show(browser, both.as_uri(), width=width, scheme=scheme)
    assert pages.find_violations(browser) == []
    assert pages.overflow(browser) == 0
    browser.save_screenshot(str(output_dir / f"report_{scheme}_{width}.png"))


def test_paper_shows_all_that_the_screen_does(both, browser, output_dir):
    """Nothing is wider than a page, where nobody can scroll."""
    pages.show(browser, both.as_uri(), width=700)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide = (
        "return [...document.querySelectorAll('.scroll')].filter("
        "e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
    )
    assert browser.execute_script(wide) == []
    (output_dir / "report.pdf").write_bytes(base64.b64decode(browser.print_page()))
