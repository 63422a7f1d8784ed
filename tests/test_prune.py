"""Pruning by spectral energy: what is kept, what that changes, the run it makes."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError, main
from svda_jax.devices import processes
from svda_jax.look.report import write_report
from svda_jax.models.attention import orthonormality_penalty
from svda_jax.models.indicators import retained_rank
from svda_jax.models.vit import ViT, count_macs
from svda_jax.prune import run as pruning_run
from svda_jax.prune.model import choose, factorise, mask, shrink
from svda_jax.prune.run import main as prune_main
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

L, H, K = 2, 3, 5


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(4, 6, 6, 2)).astype(np.uint8)


@pytest.fixture
def make_model(make_model_config, randomize):
    def make(**changes):
        model = ViT(make_model_config(**changes), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model, nnx.Param)
        return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))

    return make


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_same_arrays(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("spectrum", "rho", "expected"),
    [
        ([3, -4, 0, 0], 0.6, [0, 1, 0, 0]),  # 16 of 25
        ([3, -4, 0, 0], 0.64, [0, 1, 0, 0]),
        ([3, -4, 0, 0], 0.65, [1, 1, 0, 0]),
        ([3, -4, 0, 0], 1 - 1e-12, [1, 1, 0, 0]),
        ([3, -4, 0, 0], 1.0, [1, 1, 1, 1]),
        ([1, 1, 1, 1], 0.5, [1, 1, 0, 0]),  # of equal ones the first
        ([1, -1, 1, -1], 0.51, [1, 1, 1, 0]),
        ([0, 0, 0, 0], 0.9, [1, 0, 0, 0]),
        ([0, 0, 0, 7], 1e-9, [0, 0, 0, 1]),
    ],
)
def test_what_a_head_keeps(spectrum, rho, expected):
    np.testing.assert_array_equal(choose(np.array([spectrum]), rho), [expected])


def test_as_many_as_the_retained_rank(rng):
    spectrum = np.float32(rng.normal(size=(50, 16)) ** 3)
    for rho in (0.5, 0.9, 0.99):
        np.testing.assert_array_equal(
            choose(spectrum, rho).sum(-1), retained_rank(spectrum, rho)
        )


def test_all_of_the_energy_is_the_same_model_bit_for_bit(make_model, images):
    model = make_model()
    keep = [choose(block.attention.spectrum, 1.0) for block in model.blocks]
    for pruned in (mask(model, keep), shrink(model, keep)):
        assert_same_arrays(params_of(pruned), params_of(model))
        np.testing.assert_array_equal(pruned(images)[0], model(images)[0])


def test_exact_zeros_go_at_any_rho_and_change_no_logit(make_model, images):
    model = make_model()
    for block in model.blocks:
        sigma = block.attention.relative_sigma
        sigma[...] = sigma[...].at[:, 1].set(0).at[2, 3].set(0)
    keep = [choose(block.attention.spectrum, 1 - 1e-9) for block in model.blocks]
    for kept in keep:
        np.testing.assert_array_equal(kept.sum(-1), [4, 4, 3])
    np.testing.assert_array_equal(mask(model, keep)(images)[0], model(images)[0])


def test_masked_model_has_zeros_in_sigma_alone(make_model):
    model = make_model()
    keep = [choose(block.attention.spectrum, 0.6) for block in model.blocks]
    before, after = params_of(model), params_of(mask(model, keep))
    for layer, kept in enumerate(keep):
        attention = before["blocks"][layer]["attention"]
        attention["relative_sigma"] = attention["relative_sigma"] * kept
    assert_same_arrays(after, before)


def test_shrunk_model_is_the_equation_on_what_is_kept(make_model, images):
    model = make_model(depth=1)
    (attention,) = (block.attention for block in model.blocks)
    keep = [np.array([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]], bool)]
    shrunk = shrink(model, keep)
    assert shrunk.config.qk_dim == (3,)
    _, (trace,) = model(images)
    _, (narrow,) = shrunk(images)
    for head, kept in enumerate(keep[0]):
        count = kept.sum()
        for name in ("query", "key"):
            array = np.asarray(getattr(narrow, name))[:, :, head]
            whole = np.asarray(getattr(trace, name))[:, :, head]
            # A narrower product may be summed in another order.
            np.testing.assert_allclose(array[..., :count], whole[..., kept], atol=1e-5)
            np.testing.assert_array_equal(array[..., count:], 0)
        sigma = np.asarray(attention.sigma)[head, kept]
        np.testing.assert_array_equal(narrow.sigma[head, :count], sigma)
        np.testing.assert_array_equal(narrow.sigma[head, count:], 0)
    assert narrow.scale == K**-0.5


def test_counts_equal_hand_counts(make_model):
    model = make_model(num_heads=3)
    keep = [np.arange(K) < np.array([[4], [2], [1]]) for _ in range(L)]
    shrunk = shrink(model, keep)
    count = sum(leaf.size for leaf in jax.tree.leaves(params_of(shrunk)))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params_of(model)))
    # A direction of W_q and of W_k has 15 weights and a bias each, and a sigma.
    assert whole - count == L * H * (K - 4) * (2 * (15 + 1) + 1)
    # 9 tokens: W_q, W_k (4 directions of 3 heads), W_v, W_o; scores, values; MLP of 11.
    layer = 9 * 15 * (12 + 12 + 15 + 15) + 9 * 9 * (12 + 15) + 2 * 9 * 15 * 11
    assert count_macs(shrunk.config) == 9 * 2 * 2 * 2 * 15 + L * layer + 15 * 7
    full = 9 * 15 * 4 * 15 + 9 * 9 * 2 * 15 + 2 * 9 * 15 * 11
    assert count_macs(model.config) == 9 * 2 * 2 * 2 * 15 + L * full + 15 * 7


def test_width_is_rounded_up_but_not_beyond_all(make_model):
    model = make_model()
    keep = [np.arange(K) < count for count in (3, 5)]
    keep = [np.tile(kept, (H, 1)) for kept in keep]
    assert shrink(model, keep, multiple=4).config.qk_dim == (4, 5)


def test_padding_does_not_count_as_direction():
    """A head that keeps three of five directions is as one that has three."""
    rng = np.random.default_rng(0)
    kernel = np.float32(rng.normal(size=(7, 1, 3)))
    wide = np.pad(kernel, ((0, 0), (0, 0), (0, 2)))
    np.testing.assert_allclose(
        orthonormality_penalty(wide), orthonormality_penalty(kernel), rtol=1e-6
    )
    orthonormal = np.eye(5, dtype=np.float32)[:, None, :] * (np.arange(5) < 3)
    np.testing.assert_array_equal(orthonormality_penalty(orthonormal), 0)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_padding_has_no_gradient(make_model, images, attention):
    model = make_model(attention=attention)
    model = factorise(model) if attention == "softmax" else model
    keep = [np.arange(K) < np.array([[4], [2], [3]]) for _ in range(L)]
    shrunk = shrink(model, keep)
    graphdef, params = nnx.split(shrunk, nnx.Param)

    def loss(params):
        return jnp.sum(jnp.square(nnx.merge(graphdef, params)(images)[0]))

    grads = jax.jit(jax.grad(loss))(nnx.to_pure_dict(params))
    for layer in range(L):
        of = grads["blocks"][layer]["attention"]
        leaves = [of[p][k] for p in ("query", "key") for k in ("kernel", "bias")]
        leaves += [of["relative_sigma"]] if attention == "svda" else []
        for leaf in leaves:
            np.testing.assert_array_equal(leaf[..., 1, 2:], 0)
            np.testing.assert_array_equal(leaf[..., 2, 3:], 0)
            assert np.any(leaf[..., 0, :] != 0)


def test_singular_directions_say_the_same(make_model, images):
    model = make_model(attention="softmax")
    singular = factorise(model)
    # Float32 rounding of logits of order ten.
    np.testing.assert_allclose(singular(images)[0], model(images)[0], atol=1e-4)
    for one, two in zip(model.blocks, singular.blocks, strict=True):
        expected = np.asarray(one.attention.spectrum)
        np.testing.assert_allclose(two.attention.spectrum, expected, rtol=1e-4)
        # Its directions are in the order of the spectrum.
        lengths = np.linalg.norm(two.attention.query.kernel[...], axis=0)
        np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    keep = [np.arange(K) < np.full((H, 1), 3)] * L
    np.testing.assert_allclose(
        shrink(singular, keep)(images)[0], mask(singular, keep)(images)[0], atol=1e-4
    )


@pytest.fixture(scope="module")
def keep_run():
    return {}


@pytest.fixture
def trained(keep_run, make_config, tmp_path_factory, tmp_path, two_devices):
    """A copy of a run of that attention, trained once for this module."""

    def trained(attention):
        if attention not in keep_run:
            keep_run[attention] = tmp_path_factory.mktemp("runs") / attention
            config = make_config(model__attention=attention, ema_decay=0.9)
            train_and_evaluate(config, keep_run[attention])
        shutil.copytree(keep_run[attention], tmp_path / attention)
        return tmp_path / attention

    return trained


@pytest.fixture
def no_times(monkeypatch):
    """Nothing is timed, which compiles two training steps."""
    times = {"original": np.ones(1), "shrunk": np.ones(1)}
    what = ("inference", "training step")
    monkeypatch.setattr(
        pruning_run, "_measure", lambda *args: dict.fromkeys(what, times)
    )


def test_pruned_run_is_a_run(trained, tmp_path, capsys, no_report_pictures):
    workdir = trained("svda")
    argv = ["--workdir", str(workdir), "--rho=0.8", "--finetune_epochs=1"]
    prune_main(argv)
    out = workdir.with_name("svda-pruned-0.8")
    page = (out / "prune.md").read_text()
    assert page in capsys.readouterr().out
    run = runs.load(out)
    original = runs.load(workdir)
    keep = [choose(b.attention.spectrum, 0.8) for b in original.model.blocks]
    assert_same_arrays(params_of(run.model), params_of(shrink(original.model, keep)))
    assert f"{100 * float(run.history['eval_accuracy'][-1]):.2f} |" in page
    assert f"{count_macs(run.model.config):,} |" in page
    for layer, kept in enumerate(keep, start=1):
        counts = " | ".join(map(str, kept.sum(-1)))
        assert (
            f"| {layer} | {run.model.config.qk_dim[layer - 1]} of 8 | {counts}" in page
        )
    # The others open it.
    page = write_report(out, compare=workdir).read_text()
    assert page.count("<h2>Pruned</h2>") == 1
    assert page.count('alt="directions kept"') == 1
    runs.pruning_path(out).write_text("{}")
    with pytest.raises(UserError, match=r"pruning\.json is damaged"):
        write_report(out)
    main.main(["main", f"--config={out}/config.json"])
    assert "holds this run, finished" in capsys.readouterr().out
    # It was trained further, from its own parameters.
    tuned = runs.load(out.with_name("svda-pruned-0.8-finetuned"))
    assert tuned.config.init_from == str(out)
    assert tuned.model.config.qk_dim == run.model.config.qk_dim
    assert tuned.step == 4
    difference = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))),
        params_of(tuned.model),
        params_of(run.model),
    )
    # Four steps of Adam, each of about the learning rate, 2e-4, and 30 times for sigma.
    assert 0 < max(jax.tree.leaves(difference)) < 0.03


def test_softmax_run_is_pruned_where_asked(trained, no_times):
    workdir = trained("softmax")
    out = workdir.with_name("out")
    with pytest.raises(UserError, match="softmax attention; --low_rank"):
        prune_run(workdir, out, rho=0.9)
    assert not out.exists()
    prune_run(workdir, out, rho=0.5, low_rank=True)
    assert max(runs.load(out).model.config.qk_dim) < 8


def test_a_run_is_pruned_in_its_own_folder(trained, no_times, monkeypatch):
    workdir = trained("svda")
    monkeypatch.chdir(workdir)
    prune_main(["--workdir=."])
    assert runs.load(workdir.with_name("svda-pruned-0.9")).config.model.qk_dim


def test_bad_input_ends_in_one_line_and_nothing_is_written(trained, tmp_path):
    workdir = trained("svda")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copyfile(workdir / "config.json", empty / "config.json")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for argv, message in (
        (["--rho=0"], "--rho=0.0 must be more than 0 and at most 1"),
        (["--rho=1.5"], "--rho=1.5 must be more than 0 and at most 1"),
        (["--rho=nan"], "--rho=nan must be"),
        (["--multiple=0"], "--multiple=0 must be positive"),
        (["--finetune_epochs=-1"], "--finetune_epochs=-1 must not be negative"),
        ([f"--out={empty}"], "empty exists; give another --out or remove it"),
        ([f"--out={tmp_path}/a\\\\b"], r"a path with \\ or not in UTF-8"),
        (["--workdir=nowhere"], "nowhere holds no run"),
        (["--workdir=/"], "/ holds no run"),
        ([f"--workdir={empty}"], "has no checkpoint yet"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            prune_main(["--workdir", str(workdir), *argv])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_starts_from_anothers_parameters(trained, make_config, tmp_path):
    workdir = trained("svda")
    config = make_config(init_from=str(workdir), learning_rate=1e-12, ema_decay=0.9)
    train_and_evaluate(config, tmp_path / "next")
    one, two = (params_of(runs.load(w).model) for w in (workdir, tmp_path / "next"))
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_pruned_run_trains_stops_and_resumes(
    trained, make_config, tmp_path, monkeypatch, no_times
):
    workdir = trained("svda")
    prune_run(workdir, tmp_path / "pruned", rho=0.7)
    qk_dim = runs.load(tmp_path / "pruned").model.config.qk_dim
    options = {"init_from": str(tmp_path / "pruned"), "model__qk_dim": qk_dim}
    config = make_config(**options, ema_decay=0.9)
    train_and_evaluate(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(processes.StopSignal, "reached", lambda self, step: step == 5)
        train_and_evaluate(config, tmp_path / "stopped")
    assert not runs.is_finished(tmp_path / "stopped")
    shutil.rmtree(tmp_path / "pruned")  # which a run that has begun needs no more
    train_and_evaluate(config, tmp_path / "stopped")
    whole, stopped = (runs.load(tmp_path / name) for name in ("whole", "stopped"))
    assert stopped.step == whole.step
    assert_same_arrays(params_of(stopped.model), params_of(whole.model))


def test_another_model_is_no_start(trained, make_config, tmp_path):
    workdir = trained("svda")
    for changes, message in (
        ({"model__width": 32}, r"has shape \(.*\), not \("),
        ({"model__attention": "softmax"}, r"relative_sigma has shape .*, not None"),
    ):
        config = make_config(init_from=str(workdir), **changes)
        with pytest.raises(
            UserError, match=f"init_from=.* of another model: .*{message}"
        ):
            train_and_evaluate(config, tmp_path / "next")
    with pytest.raises(UserError, match="init_from=nowhere: nowhere holds no run"):
        train_and_evaluate(make_config(init_from="nowhere"), tmp_path / "next")
    assert not (tmp_path / "next").exists()
