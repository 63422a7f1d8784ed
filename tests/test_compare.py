"""The list of runs: what differs, where they ended, and damage."""

import csv
import io
import json
import shutil

import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.config import to_json
from svda_jax.run import compare, runs
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.history import VARIABLES, History


@pytest.fixture
def folder(tmp_path, make_config):
    """Two runs at their end, one before its first evaluation, one damaged."""
    for seed, (name, step) in enumerate(
        {"a": 2, "deep/b": 1, "c": 0, "d": 1}.items(), start=1
    ):
        workdir = tmp_path / "runs" / name
        runs.create_workdir(make_config(seed=seed, note=name), workdir)
        if step:
            values = {key: np.float32(seed) for key, one in VARIABLES.items()}
            heads = {k: np.full((2, 3), 4.0) for k, one in VARIABLES.items() if one[0]}
            values |= {k: v for k, v in heads.items() if len(VARIABLES[k][0]) == 2}
            values |= {"indicators": np.ones((6, 2, 3)), "class_accuracy": np.ones(4)}
            values |= {k: np.ones((2, 3, 5)) for k in VARIABLES if k.endswith("trum")}
            history = History(workdir, last_step=0, attrs={})
            history.append(step, float(step), values | {"eval_accuracy": 0.5})
            with Checkpoints(runs.checkpoints_path(workdir)) as checkpoints:
                checkpoints.save(step, {"x": np.zeros(2)})
    (tmp_path / "runs/d/history.nc").write_bytes(b"CDF")
    export = tmp_path / "runs/a-safetensors"  # is no run
    export.mkdir()
    for name in ("config.json", "model.json"):
        (export / name).write_text('{"architecture": "vit"}')
    return tmp_path / "runs"


def test_lines_of_runs_and_damage(folder, capsys):
    with pytest.raises(SystemExit, match=r"^1$"):
        compare.main([str(folder)])
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    figures = ["epoch", "accuracy", "loss", "score_rank", "finished"]
    assert rows[0] == ["run", "seed", *figures]
    assert rows[1] == [f"{folder}/a", "1", "2.0", "50.00%", "1.0000", "4.00", "yes"]
    assert rows[2] == [f"{folder}/c", "3", "no"]
    assert rows[3] == [f"{folder}/deep/b", "2", "1.0", "50.00%", "2.0000", "4.00", "no"]
    assert err.startswith(f"damaged: {folder}/d: {folder}/d/history.nc is damaged")
    assert len(rows) == 4
    assert err.count("\n") == 1


def test_long_options_are_shortened_for_people(make_config, tmp_path, capsys):
    for seed, path in enumerate((60 * "x" + "-end", "")):
        config = make_config(init_from=path)
        runs.create_workdir(config, tmp_path / str(seed))
    compare.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "…xxxxxxxxxxxxxxxxxxx-end " in out
    assert max(map(len, out.splitlines())) < len(str(tmp_path)) + 80
    compare.main([str(tmp_path), "--csv"])
    assert 60 * "x" + "-end" in capsys.readouterr().out


def test_for_programs(folder, capsys):
    with pytest.raises(SystemExit, match=r"^1$"):
        compare.main([str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found] == [
        str(folder / name) for name in ("a", "c", "d", "deep/b")
    ]
    assert found[0]["options"] == {"seed": 1}
    assert found[0]["finished"] is True
    assert found[1]["accuracy"] is None
    assert found[2].keys() == {"run", "error"}
    with pytest.raises(SystemExit, match=r"^1$"):
        compare.main([str(folder), "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["seed"] for row in rows] == ["1", "3", "", "2"]
    assert float(rows[0]["score_rank"]) == 4
    assert "is damaged" in rows[2]["error"]


def test_one_run_and_only_damaged_ones(folder, capsys, make_config):
    compare.main([str(folder / "a")])
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["run", "epoch"]
    (folder / "d" / "config.json").write_text(to_json(make_config())[:-9])
    with pytest.raises(SystemExit, match=r"^1$"):
        compare.main([str(folder / "d")])
    out, err = capsys.readouterr()
    assert (out, "config.json is damaged" in err) == ("", True)


def test_a_loss_that_is_no_number_is_null(folder, capsys):
    values = runs.read_history(folder / "a")
    values["eval_loss"][:] = np.nan
    values.to_netcdf(folder / "a" / "history.nc", engine="scipy")
    compare.main([str(folder / "a"), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found[0]["loss"] is None
    assert found[0]["accuracy"] == 0.5


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        compare.main([str(tmp_path)])
    with pytest.raises(UserError, match="is not a folder"):
        compare.main([str(tmp_path / "no")])
    shutil.rmtree(tmp_path)
