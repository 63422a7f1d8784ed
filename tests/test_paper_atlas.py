"""The check of atlases at toy size, from the command to the table."""

import json

import xarray as xr

from experiments.paper import atlas


def test_check_of_atlases(tmp_path, arguments, two_devices):
    argv = ["atlas", "--config=configs/digits.py"]
    argv += arguments("--seeds=1", num_epochs=1)
    atlas.main(argv)
    out = tmp_path / "out" / "atlas" / "digits"
    (found,) = json.loads((out / "numbers.json").read_text())
    numbers = xr.load_dataset(out / "atlas.nc", engine="scipy")
    costs = sorted(numbers["added_loss"].values.ravel(), reverse=True)
    assert [one["foreseen"][0] for one in found] == costs[: atlas.NUM_DIRECTIONS]
    page = (out / "README.md").read_text()
    for one in found:
        at = f"| 0 | {one['layer']} | {one['head']} | {one['direction']} |"
        assert at in page
    assert "Atlas of digits-svda-0" in (out / "atlas.html").read_text()
