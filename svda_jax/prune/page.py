"""The page prune.md: what pruning a run cost and bought."""

import jax
import numpy as np

from svda_jax.devices.timing import spread
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.prune.model import foresee


def compare(keep, models, values, logits, seconds):
    """The three models side by side, line by line.

    Args:
      keep: `[H, K]` bool for each layer.
      models: by name, as are the next two.
      values: of an evaluation.
      logits: of the classes, `[n, C]`.
      seconds: `[pairs]` by name by what took them.
    """
    kept, all_ = sum(k.sum() for k in keep), sum(k.size for k in keep)
    lines = [
        f"{1 - kept / all_:.1%} of the directions of attention scores are gone. JAX "
        f"{jax.__version__}, {jax.devices()[0].device_kind}. Times over the "
        "original's: median and quartiles of pairs in turn.",
        "",
        "| | original | masked | shrunk |",
        "|---|---|---|---|",
    ]
    rows = {
        "accuracy (%)": [f"{100 * v['eval_accuracy']:.2f}" for v in values.values()],
        "cross-entropy (nats)": [f"{v['eval_loss']:.4f}" for v in values.values()],
        "parameters": [f"{count_parameters(model):,}" for model in models.values()],
        "MACs an image": [f"{count_macs(m.config):,}" for m in models.values()],
    }
    for what, measured in seconds.items():
        ratio = spread(measured["shrunk"] / measured["original"])
        rows[f"time of {what}"] = ["1", "", str(ratio)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    apart = np.abs(logits["masked"] - logits["shrunk"])
    same = np.mean(logits["masked"].argmax(-1) == logits["shrunk"].argmax(-1))
    svda = models["shrunk"].config.attention == "svda"
    return [
        *lines,
        "",
        "Masked, lengths are as they were; shrunk, they are estimated. "
        * svda
        + "The masked and the shrunk model's class logits are "
        f"{apart.mean():.3g} apart in the mean and {apart.max():.3g} at most, and "
        f"they agree on the class of {same:.2%} of the images.",
    ]


def describe(keep, config, basis, sizes, moved):
    """What each head keeps, and how far its scores move, line by line.

    Args:
      keep: `[H, K]` bool for each layer.
      config: of the shrunk model.
      basis: one of `BASES`.
      sizes: of the directions, `[H, K]` for each layer.
      moved: from `measure_movement`.
    """
    heads = [f"head {h + 1}" for h in range(len(keep[0]))]
    lines = [
        "Directions kept, head by head; the width of a layer has as many as its widest "
        "head keeps"
        + " and columns that stand in the lengths" * (config.attention == "svda")
        + ":",
        "",
        f"| layer | width | {' | '.join(heads)} |",
        "|---" * (2 + len(heads)) + "|",
    ]
    widths = config.qk_dim or [one.shape[-1] for one in keep]
    for layer, (one, width) in enumerate(zip(keep, widths, strict=True), start=1):
        counts = " | ".join(str(count) for count in one.sum(-1))
        lines.append(f"| {layer} | {width} of {one.shape[-1]} | {counts} |")
    foreseen = [foresee(size, kept) for size, kept in zip(sizes, keep, strict=True)]
    lines += [
        "",
        "How far scores move by what is gone, root mean square over the evaluation "
        "split (logits, each row's mean left out), the layer's inputs as they were"
        + (
            "; in brackets what the sizes of the directions that went foresee, which "
            "takes queries and keys for independent:"
            if basis == "score"
            else ":"
        ),
        "",
        f"| layer | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for layer, row in enumerate(moved):
        cells = [f"{value:.3g}" for value in row]
        if basis == "score":
            pairs = zip(cells, foreseen[layer], strict=True)
            cells = [f"{cell} ({value:.3g})" for cell, value in pairs]
        lines.append(f"| {layer + 1} | {' | '.join(cells)} |")
    return lines
