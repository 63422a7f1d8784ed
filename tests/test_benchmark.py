"""The benchmarks: equal work on both sides, and what is written."""

import importlib
import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.benchmarks import __main__ as benchmark
from experiments.benchmarks import costs as benchmark_costs
from experiments.benchmarks import peers as benchmark_peers
from experiments.benchmarks import speed as benchmark_speed
from experiments.benchmarks.table import Table
from svda_jax.devices import timing
from svda_jax.models.vit import ViT


def test_every_variant_is_timed_in_turn():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.measure(variants, repeats=3)
    assert calls == ["a", "b"] * 4  # the first round compiles
    assert all(len(values) == 3 for values in seconds.values())


def test_a_table_is_written_as_markdown_and_json(tmp_path):
    ratio = timing.spread([1.0, 2.0, 3.0], 1)
    table = Table("T", "text", ("a", "b"), [("x", ratio)], ("a note",))
    page = table.write("toy", tmp_path)
    assert page == (tmp_path / "benchmark_toy.md").read_text()
    assert "| x | 2.0 (1.5 to 2.5) |" in page
    assert f"jax {jax.__version__}" in page
    data = json.loads((tmp_path / "benchmark_toy.json").read_text())
    assert data["rows"] == [{"a": "x", "b": {"median": 2.0, "quartiles": [1.5, 2.5]}}]
    assert data["where"] in page


@pytest.mark.parametrize("repeats", ["0", "-1"])
def test_repeats_must_be_positive(repeats, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["step", f"--repeats={repeats}"])
    assert f"--repeats={repeats} must be positive" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        benchmark_speed, "step", lambda repeats: pytest.fail("measured")
    )
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        benchmark.main(["step", f"--out={tmp_path}/file/results"])
    assert "file/results: Not a directory" in capsys.readouterr().err


def test_every_table_has_its_function():
    for table, module in benchmark.TABLES.items():
        module = importlib.import_module(f"experiments.benchmarks.{module}")
        assert callable(getattr(module, table))


def test_the_command_writes_the_table_of_its_function(tmp_path, monkeypatch, capsys):
    table = Table("Toy", "text", ("a",), [(1,)])
    monkeypatch.setattr(benchmark_costs, "loop", lambda repeats: table)
    benchmark.main(["loop", f"--out={tmp_path}"])
    assert "# Toy" in capsys.readouterr().out
    assert (tmp_path / "benchmark_loop.json").exists()


@pytest.mark.slow
def test_the_table_startup_sees_the_first_step():
    rows = dict(benchmark_costs.startup(1).rows)
    assert 0 < rows["warm"].median < rows["empty"].median


def tiny(**changes):
    sizes = {"image_size": 4, "patch_size": 2, "width": 6, "num_heads": 3, "depth": 2}
    return benchmark_speed.create_config(**{**sizes, "mlp_dim": 5, **changes})


def count(config):
    params = nnx.state(ViT(config, rngs=nnx.Rngs(0)), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_peers_have_as_many_parameters(pool):
    config = tiny(pool=pool, attention="softmax")
    images, _ = benchmark_speed.create_batch(config, 3)
    linen = benchmark_peers.LinenViT(config).init(jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(linen)) == count(config)


@pytest.mark.parametrize(
    "create", [benchmark_speed.create_step, benchmark_peers.create_linen_step]
)
def test_steps_of_a_benchmark_learn(create):
    run = create(tiny(), 8)
    losses = [float(run()[1]) for _ in range(20)]
    assert losses[0] == pytest.approx(np.log(10), rel=1e-5)  # a zero head
    assert losses[-1] < losses[0] - 0.05


def test_flops_equal_a_hand_count():
    # 4 tokens of 4 pixels, D = 6, MLP of 5, 10 classes; two FLOPs a multiplication.
    layer = 4 * (4 * 6 * 6 + 2 * 6 * 5) + 2 * 4 * 4 * 6
    forward = 2 * (2 * layer + 4 * 4 * 6 + 6 * 10)
    assert benchmark_speed.count_flops(tiny(), 3) == 3 * 3 * forward


def test_bytes_of_the_normalisation_equal_a_hand_count():
    # Queries, keys: two passes forward, three for the gradient, 4 bytes, B 3, N 4.
    assert benchmark_speed.count_normalization_bytes(tiny(), 3) == (
        2 * 5 * 4 * 3 * 4 * 2 * 6
    )


def test_table_of_the_indicators(monkeypatch):
    monkeypatch.setattr(benchmark_costs, "create_cifar", tiny)
    rows = benchmark_costs.indicators(repeats=1).rows
    assert [row[0] for row in rows] == ["softmax", "svda"]
    assert all(row[3] > 1 for row in rows)  # of memory


@pytest.mark.parametrize("table", ["overhead", "step"])
def test_tables_of_the_step(monkeypatch, table):
    monkeypatch.setattr(benchmark_speed, "models", lambda: {"toy": (tiny(), 4)})
    monkeypatch.setattr(
        benchmark_speed, "_measure_rates", lambda dtype: {"products": 1e9, "bytes": 1e9}
    )
    result = getattr(benchmark_speed, table)(repeats=1)
    (row,) = result.rows
    assert row[:6] == ("toy", 6, 2, 4, 2, 4)
    assert len(row) == len(result.columns)
