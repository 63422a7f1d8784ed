"""The page of a rehearsal: estimates, what was timed here, and the table to fill."""

import shlex

from experiments.benchmarks.compilers import MACHINES
from experiments.paper.comparison import ATTENTIONS
from experiments.paper.rehearse_cost import TARGETS, describe_target, device_hours

NUM_SEEDS = 3


def write_page(name, path, config, found, num_images):
    """The page, as text.

    Args:
      name: of the config.
      path: of the config.
      config: its options.
      found: a dict, see `rehearse`.
      num_images: to train on and to evaluate, by data set.
    """
    images = num_images[found["config"]["dataset"]["name"]]
    lines = [
        f"# Rehearsal of {name}",
        "",
        "The comparison itself is not yet run. Below is what compilers estimate of it, "
        "what was timed here on made-up files, and the table that it will fill.",
        "",
        f"    python -m experiments.paper --rehearse --config={shlex.quote(path)}",
        "",
        *_describe_cost(config, found["estimates"], images),
        "",
    ]
    if "stages" not in found:
        lines.append("Input and stages are not yet rehearsed.")
        return "\n".join(lines) + "\n"
    lines += [
        *_describe_input(config, found),
        "",
        *_describe_stages(found["stages"]),
        "",
        "## The table to fill",
        "",
        f"    python -m experiments.paper --config={shlex.quote(path)}",
        "",
        "| | softmax | SVDA | SVDA - softmax |",
        "|---|---|---|---|",
        *(f"| {row} {'| not yet run ' * 3}|" for row in found["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _describe_cost(config, estimates, images):
    lines = [
        "## What compilers estimate",
        "",
        f"A training step of {config.batch_size} images, {images[0]:,} images an "
        f"epoch, {config.num_epochs} epochs. No device was there and nothing in this "
        "table was measured. For the TPU a step takes the cycles that its compiler "
        "estimates, without waiting for other devices; loops whose turns are random "
        "count as one. "
        "For the GPU, whose compiler estimates no time, it takes what its matrix "
        "products alone or its memory traffic alone would at the card's peak, "
        "whichever is longer: a floor. Hours are of all devices together, of training "
        f"alone; each evaluation adds a forward pass over {images[1]:,} images.",
        "",
        "| device | attention | ms a step | longer alone | GB of memory held (has) | "
        "s an epoch | device hours a run |",
        "|---" * 7 + "|",
    ]
    totals, wheres = [], []
    for machine in TARGETS:
        if machine not in estimates:
            lines.append(f"| {describe_target(machine)} {'| not at hand ' * 6}|")
            continue
        found, hours = estimates[machine], []
        wheres.append(f"{describe_target(machine)}: compiled on {found['where']}")
        for attention in ATTENTIONS:
            step, head = found[attention], f"| {describe_target(machine)} | {attention}"
            if "refused" in step:
                lines.append(f"{head} {'| does not fit ' * 5}|")
                continue
            hours.append(device_hours(step, config, machine, images[0]))
            epoch = step["seconds"] * images[0] / config.batch_size
            lines.append(
                f"{head} | {1000 * step['seconds']:.2f} | {step['bound']} | "
                f"{step['held'] / 1e9:.2f} ({MACHINES[machine].memory / 1e9:.0f}) | "
                f"{epoch:.2f} | {hours[-1]:.2f} |"
            )
        if len(hours) == len(ATTENTIONS):
            totals.append(
                f"{NUM_SEEDS * sum(hours):.1f} device hours on "
                f"{describe_target(machine)}"
            )
    if totals:
        lines += [
            "",
            f"Both attentions, {NUM_SEEDS} seeds, by these estimates: "
            f"{'; '.join(totals)}.",
        ]
    return lines + [line for where in wheres for line in ("", where)]


def _describe_input(config, found):
    timed = found["input"]
    rate = timed["images a second"]
    seconds = f"Opened in {timed['seconds to open']:.1f} s"
    came = f"batches of 64 then came at {rate:,.0f} images/s"
    if config.dataset.streaming:
        text = f"{seconds}; {came}, read, decoded, cropped and scaled by the processor."
    else:
        text = (
            f"{seconds}, which decodes all images and puts them on the device; {came}, "
            "gathered on the device (here the processor)."
        )
    lines = ["## Input, timed here", "", found["where"], "", text]
    for machine, one in found["estimates"].items():
        steps = [one[a]["seconds"] for a in ATTENTIONS if "seconds" in one[a]]
        if config.dataset.streaming and steps:
            needed = config.batch_size / min(steps)
            lines += [
                "",
                f"{describe_target(machine)} would take {needed:,.0f} images/s by the "
                f"estimate above, {needed / rate:.1f} times what this machine gives.",
            ]
    return lines


def _describe_stages(stages):
    lines = [
        "## Every stage, run here in small",
        "",
        "Made-up images in the layout of the real files, one seed and one epoch of 128 "
        "images with a model of 2 blocks of width 16: whether all stages fit together, "
        "and nothing else. Their accuracies mean nothing and are not kept.",
        "",
        "| stage | seconds | files it left |",
        "|---|---|---|",
    ]
    for stage, one in stages.items():
        files = ", ".join(f"`{file}`" for file in one["files"]) or "the data set"
        lines.append(f"| {stage} | {one['seconds']:.1f} | {files} |")
    return lines
