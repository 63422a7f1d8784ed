"""The atlas: what it says of directions, and the page that shows it."""

import jax
import numpy as np
import pages
import pytest
import xarray as xr
from flax import nnx

from svda_jax import UserError
from svda_jax.atlas.measure import measure_atlas
from svda_jax.atlas.page import draw, main, write_atlas
from svda_jax.config import recipe
from svda_jax.data.in_memory import Examples, InMemory
from svda_jax.devices import parallel
from svda_jax.models.attention import attention_weights
from svda_jax.models.score import decompose
from svda_jax.models.vit import ViT
from svda_jax.prune.measure import measure_moments
from svda_jax.prune.model import mask, split
from svda_jax.run.runs import Run
from svda_jax.train.loop import train_and_evaluate

L, H, K, GRID = 2, 3, 5, 3


@pytest.fixture(params=["svda", "softmax", "cls"])
def model(request, make_model_config, randomize):
    changes = (
        {"pool": "cls"} if request.param == "cls" else {"attention": request.param}
    )
    model = ViT(make_model_config(**changes), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))


@pytest.fixture
def split_of():
    """Makes a split of images and their labels."""

    def make(images, labels, batch_size=3):
        mesh = parallel.create_mesh(jax.devices()[:1])
        examples = Examples(images, np.int32(labels), (), {})
        return InMemory(examples, batch_size=batch_size, mesh=mesh)

    return make


@pytest.fixture
def labels():
    return [0, 1, 1, 0, 6]


def coordinates(model, data, images):
    """alpha and beta of every direction, `[B, N, L, H, K, 2]` float64."""
    moments, _ = measure_moments(model, data)
    _, traces = model(images)
    found = []
    for trace, moment, block in zip(traces, moments, model.blocks, strict=True):
        a, _, b = decompose(moment, np.float64(block.attention.factors))
        query, key = map(np.float64, trace[:2])
        if trace.sigma is not None:
            query, key = (
                x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key)
            )
        key -= key.mean(1, keepdims=True)
        both = [np.einsum("bihk,hkr->bihr", x, y) for x, y in ((query, a), (key, b))]
        found.append(np.stack(both, -1))
    return np.stack(found, 2)


def test_directions_add_up_to_the_score_and_are_measured_by_one_unit(
    model, split_of, images, labels
):
    data = split_of(images, labels)
    atlas = measure_atlas(model, data, num_directions=99, num_removed=1)
    ends = coordinates(model, data, images)
    np.testing.assert_allclose(np.square(ends).mean((0, 1)), 1, rtol=1e-3)
    alpha, beta = np.moveaxis(ends, -1, 0)
    _, traces = model(images)
    for layer, trace in enumerate(traces):
        scores = np.einsum(
            "bihr,hr,bjhr->bhij",
            alpha[:, :, layer],
            atlas["strength"].values[layer],
            beta[:, :, layer],
        )
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = attention_weights(*trace[:3], scale=trace.scale)
        np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(atlas["share"].sum("direction"), 1, rtol=1e-5)
    np.testing.assert_allclose(atlas["strength"], atlas["spectrum"], rtol=1e-6)


def test_patches_places_and_classes_are_those_of_a_search_by_hand(
    model, split_of, images, labels
):
    data = split_of(images, labels)
    atlas = measure_atlas(model, data, num_directions=2, num_patches=2, num_removed=1)
    ends = coordinates(model, data, images)[..., :2, :]
    energy = np.prod(np.square(ends).mean(1), -1) * np.square(atlas["strength"].values)
    for label in set(labels):
        np.testing.assert_allclose(
            atlas["class_strength"][..., label],
            np.sqrt(energy[np.array(labels) == label].mean(0)),
            rtol=1e-3,
        )
    assert np.isnan(atlas["class_strength"][..., 3]).all()  # of which there is no image
    turned = np.where(ends[..., 0].mean((0, 1)) < 0, -1, 1)
    patches = (ends * turned[..., None])[:, -(GRID**2) :]  # [B, P, L, H, 2, 2]
    place = patches.mean(0)
    np.testing.assert_allclose(
        atlas["place"], np.moveaxis(place, 0, -1), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        atlas["place_share"],
        np.square(place).mean(0) / np.square(patches).mean((0, 1)),
        rtol=1e-3,
    )
    for *where, side, sign in np.ndindex(L, H, 2, 2, 2):
        along = patches[(slice(None), slice(None), *where, side)] * (1, -1)[sign]
        best = np.argsort(-along.max(1))[:2]
        one = atlas.isel(layer=where[0], head=where[1], direction=where[2])
        one = one.isel(side=side, sign=sign)
        np.testing.assert_array_equal(one["image"], best)
        np.testing.assert_array_equal(one["at"], along[best].argmax(1))
        np.testing.assert_allclose(one["value"], along[best].max(1), rtol=1e-3)


def test_what_a_direction_costs_is_what_the_model_without_it_loses(
    model, split_of, images, labels
):
    data = split_of(images, labels)
    atlas = measure_atlas(model, data, num_directions=2, num_removed=5)
    moments, _ = measure_moments(model, data)
    directions = split(model, "score", moments)

    def centred(some):
        logits = np.asarray(some(images)[0])
        return logits - logits.mean(-1, keepdims=True)

    def losses(logits):
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), labels]

    whole = centred(model)
    for layer, head, direction in np.ndindex(L, H, 2):
        keep = [np.ones((H, K), bool) for _ in range(L)]
        keep[layer][head, direction] = False
        without = mask(model, directions, keep)
        one = atlas.isel(layer=layer, head=head, direction=direction)
        moved = np.sqrt(np.square(centred(without) - whole).mean())
        np.testing.assert_allclose(one["moved_logits"], moved, rtol=1e-2, atol=1e-5)
        added = losses(centred(without)) - losses(whole)
        np.testing.assert_allclose(one["added_loss"], added.mean(), atol=1e-4)
        np.testing.assert_allclose(
            one["class_added_loss"][1], added[1:3].mean(), atol=1e-4
        )
        np.testing.assert_allclose(
            one["added_loss_error"], added.std() / 5**0.5, atol=1e-4
        )
        weights = [
            jax.nn.softmax(scores(some, images, layer)) for some in (model, without)
        ]
        total = 0.5 * np.abs(weights[0] - weights[1]).sum(-1).mean((0, 2))
        np.testing.assert_allclose(one["moved_attention"], total[head], atol=1e-4)


def scores(model, images, layer):
    trace = model(images)[1][layer]
    return np.log(attention_weights(*trace[:3], scale=trace.scale))


def test_fewer_images_than_a_batch_and_no_more_than_asked_for(
    model, split_of, images, labels
):
    data = split_of(images, labels)
    for number in (2, 4, 99):
        atlas = measure_atlas(model, data, num_images=number, num_removed=2)
        assert atlas.attrs["num_images"] == min(number, 5)
        assert int(atlas["image"].max()) == min(number, 5) - 1
        assert atlas.sizes["rank"] == min(number, 5)


@pytest.fixture
def large(make_model_config, split_of, rng):
    """The page of a model as if it had 12 layers of 12 heads, over 300 images."""
    config = make_model_config(
        image_size=64, patch_size=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model = ViT(config, rngs=nnx.Rngs(0))
    images = rng.integers(0, 256, size=(300, 64, 64, 3)).astype(np.uint8)
    data = split_of(images, rng.integers(7, size=300), batch_size=100)
    atlas = measure_atlas(model, data, num_directions=4, num_removed=1)
    atlas = atlas.isel(layer=[0, 1] * 6, head=[0, 1, 2] * 4)
    atlas["image"][:] = rng.integers(300, size=atlas["image"].shape)
    history = xr.Dataset({"eval_accuracy": ("step", [0.5])})
    names = tuple(f"</script><b>{i}" for i in range(7))
    run = Run(recipe("cifar10"), model, 1, history, names)
    return draw("large & <b>", run, data, atlas)


def test_page_of_many_heads_in_a_browser(large, browser, tmp_path, output_dir):
    assert len(large) < 30e6
    path = tmp_path / "atlas.html"
    path.write_text(large)
    browser.get(path.as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, "#grid button") == 144
    assert browser.execute_script(count, "section section") == 4  # of one head
    title = "return document.querySelector('#head h2').textContent"
    button = browser.find_element("id", "button-12-7")
    button.send_keys("\ue007")  # Enter
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert browser.execute_script(title) == "Layer 12, head 7"
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.execute_script(count, "#head .whole") == 4 * 2 * 2 * 6
    assert "</script><b>" in browser.execute_script(
        "return document.querySelector('#head .whole').getAttribute('aria-label')"
    )
    assert browser.get_log("browser") == []
    assert not pages.find_requests(browser)[1]
    opened = "return performance.timing.domComplete - performance.timing.responseEnd"
    browser.get(path.as_uri())
    assert browser.execute_script(opened) < 2000  # ms, with the first head drawn
    browser.set_window_size(1100, 1600)
    browser.save_screenshot(str(output_dir / "atlas_12x12.png"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500])
def test_page_is_accessible(large, browser, tmp_path, output_dir, scheme, width):
    """By axe-core; and a narrow page scrolls down alone."""
    path = tmp_path / "atlas.html"
    path.write_text(large)
    pages.show(browser, path.as_uri(), width=width, scheme=scheme)
    assert pages.find_violations(browser) == []
    assert pages.overflow(browser) == 0
    browser.save_screenshot(str(output_dir / f"atlas_{scheme}_{width}.png"))


@pytest.mark.usefixtures("two_devices", "no_pictures")
def test_atlas_of_a_run_and_what_is_refused(make_config, tmp_path, capsys):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="holds no run"):
        write_atlas(workdir)
    train_and_evaluate(make_config(num_epochs=1), workdir)
    capsys.readouterr()
    main(["--workdir", str(workdir), "--directions=2", "--images=20"])
    assert capsys.readouterr().out.strip() == str(workdir / "atlas.html")
    atlas = xr.load_dataset(workdir / "atlas.nc", engine="scipy")
    assert atlas.sizes["direction"] == 2
    assert atlas.attrs["num_images"] == 20
    assert "<title>Atlas of run</title>" in (workdir / "atlas.html").read_text()
    with pytest.raises(UserError, match="its folder does not exist"):
        write_atlas(workdir, out=tmp_path / "nowhere/atlas.html")
    history = (workdir / "history.nc").read_bytes()
    for name, said in {
        "history.html": "history.nc exists; give another --out or remove it",
        "page.nc": "must end in .html",
        ".": "must end in .html",
    }.items():
        with pytest.raises(UserError, match=said):
            write_atlas(workdir, out=workdir / name)
    assert (workdir / "history.nc").read_bytes() == history
    for option in ("--directions=0", "--images=-1", "--removed=0"):
        with pytest.raises(UserError, match=f"^{option} must be positive"):
            main(["--workdir", str(workdir), option])
