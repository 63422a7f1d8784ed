"""The figures and reports of results, drawn from what stands beside them.

    python -m experiments.paper --redraw --runs=RUNS

Figures come from the histories beside the results; the time of a step, which no history
has, from their table. Nothing is trained or measured and no table changes. Pictures of
attention, the report and the atlas also need the runs of seed 0 under --runs, and the
data set; where a run is missing they stay as they are.
"""

import pathlib
import re

import jax
import numpy as np
import xarray as xr

from experiments.paper import figures as paper_figures
from experiments.paper.comparison import ATTENTIONS, Comparison, writing
from svda_jax import UserError
from svda_jax.atlas.page import draw as draw_atlas
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.devices.timing import Spread
from svda_jax.look.maps import attention_maps
from svda_jax.look.report import write_report
from svda_jax.run import runs
from svda_jax.train.derive import load_data

NUM_PICTURED = 3


def redraw(out, folder, names=()):
    """Draws the results in a folder anew.

    Args:
      out: the folder, with one for each config.
      folder: of the runs.
      names: of the configs; none are all that have results in out.

    Raises:
      UserError: there are no results, or they cannot be read or written.
    """
    names = names or sorted(path.parent.name for path in out.glob("*/*-svda-0.nc"))
    comparisons = [read(out / name, folder) for name in names]
    if not comparisons:
        raise UserError(f"{out} has no results to draw")
    for comparison in comparisons:
        with writing(out / comparison.name):
            draw(comparison, out / comparison.name)
        _redraw_atlas(out / "atlas" / comparison.name, comparison.workdirs["svda"][0])
        print(f"drawn: {out / comparison.name}")
    if len(comparisons) > 1:
        paper_figures.draw(comparisons, out)


def read(results, folder):
    """The `Comparison` whose results are in a folder; its runs need not be there."""
    name, page = results.name, results / "README.md"
    seeds = range(len(list(results.glob(f"{name}-svda-[0-9]*.nc"))))
    if not seeds or not page.exists():
        raise UserError(f"{results} has no results to draw")
    stems = {v: [f"{name}-{v}-{seed}" for seed in seeds] for v in ATTENTIONS}
    histories = {
        variant: [_read_history(results / f"{stem}.nc") for stem in own]
        for variant, own in stems.items()
    }
    workdirs = {v: [pathlib.Path(folder, s) for s in own] for v, own in stems.items()}
    comparison = Comparison(name, workdirs, histories, failures={})
    number = r"([\d.]+)"
    step = rf"time of a step over softmax's \| 1 \| {number} \({number} to {number}\)"
    if found := re.search(step, page.read_text()):
        median, low, high = map(float, found.groups())
        comparison.overhead = Spread(low, median, high, decimals=3)
    return comparison


def draw(comparison, out):
    """Writes the figures, and of the runs that are there pictures and a report."""
    paper_figures.draw([comparison], out)
    finished = [
        comparison.workdirs[variant][0]
        for variant in ("svda", "softmax")
        if comparison.histories[variant][0] is not None
    ]
    if not finished or not all(path.exists() for path in finished):
        return
    if comparison.histories["svda"][0] is not None:
        paper_figures.save(_attention(finished[0]), out / "figure_attention")
    write_report(finished[0], compare=finished[1:], out=out / "report.html")


def _read_history(path):
    """None where the run failed and left none."""
    if not path.exists():
        return None
    try:
        return xr.load_dataset(path, engine="scipy")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _attention(workdir):
    """The picture of a run's attention over the first images of its evaluation."""
    run = runs.load(workdir)
    mesh = parallel.create_mesh(jax.local_devices()[:1])
    data = datasets.load(run.config.dataset, "eval", batch_size=NUM_PICTURED, mesh=mesh)
    images, labels = data.get(range(NUM_PICTURED))
    _, traces = run.model(images)
    return paper_figures.attention(
        images,
        np.asarray(attention_maps(traces, run.model.config)),
        np.stack([block.attention.spectrum for block in run.model.blocks]),
        [data.class_names[label] for label in labels],
    )


def _redraw_atlas(results, workdir):
    """The page of an atlas, from its numbers."""
    path = results / "atlas.nc"
    if not path.exists() or not workdir.exists():
        return
    run = runs.load(workdir)
    _, _, data = load_data(run.config)
    page = draw_atlas(workdir.name, run, data, _read_history(path))
    with writing(results):
        (results / "atlas.html").write_text(page)
