"""The pages of rehearsals: the table to fill, estimates, and what was tried here."""

from experiments.benchmarks.compilers import MACHINES
from experiments.paper.comparison import ATTENTIONS
from experiments.paper.rehearse_cost import TARGETS, describe_target, device_hours
from experiments.paper.rehearse_files import DATA

NUM_SEEDS = 3


def write_page(name, found):
    """The page of a rehearsal, as text.

    Args:
      name: of the config.
      found: a dict, see `rehearse`.
    """
    lines = [
        f"# Rehearsal of {name}",
        "",
        "The comparison itself is **not yet run**. Below are the line that runs it, "
        "what compilers estimate that it takes, and what was tried in small.",
        "",
        *_describe_table(name, found),
        "",
        *_describe_cost(found),
        "",
    ]
    if "stages" in found:
        lines += [*_describe_input(found), "", *_describe_stages(found), ""]
    else:
        lines += ["Input and stages are not yet rehearsed.", ""]
    lines += [
        "Rehearsed by",
        "",
        f"    python -m experiments.paper --rehearse {found['options']}",
    ]
    return "\n".join(lines) + "\n"


def write_index(all_found):
    """The page of all rehearsals, as text.

    Args:
      all_found: dicts as of `write_page`, by the name of the config.
    """
    lines = [
        "# Rehearsals",
        "",
        "Comparisons that wait for an accelerator. Whoever has one prepares the data "
        "(once), types the second line of a row, and gets the table of its page. Hours "
        f"are of all devices together, of both attentions and {NUM_SEEDS} seeds, by "
        "compilers' estimates, not measured; for the GPU they are a floor.",
        "",
        "| page | data, then comparison | "
        f"{' | '.join(f'hours, {describe_target(m)}' for m in TARGETS)} | "
        "stages that ran in small |",
        "|---|---|" + "---|" * (len(TARGETS) + 1),
    ]
    for name, found in sorted(all_found.items()):
        prepare, run = _commands(found)
        hours = [_total_hours(found, machine) for machine in TARGETS]
        cells = [f"{h:,.2f}" if h else "not at hand" for h in hours]
        said = list(found.get("stages", {}).values())
        cells.append(f"{said.count('')} of {len(said)}" if said else "not yet")
        lines.append(
            f"| [{name}]({name}.md) | `{prepare}`<br>`{run}` | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _commands(found):
    """What prepares the data, and what fills the table."""
    data = DATA[found["config"]["dataset"]["name"]]
    return (
        f"python -m svda_jax prepare {data.prepare}",
        f"python -m experiments.paper {found['options']}",
    )


def _total_hours(found, machine):
    """Of both attentions and all seeds; None where a step has no estimate."""
    config, steps = found["config"], _steps(found, machine)
    num_images = DATA[config["dataset"]["name"]].num_train
    hours = [device_hours(step, config, machine, num_images) for step in steps.values()]
    return NUM_SEEDS * sum(hours) if len(hours) == len(ATTENTIONS) else None


def _steps(found, machine):
    """Estimates of a step that fits, by attention."""
    steps = found["estimates"].get(machine, {})
    return {a: steps[a] for a in ATTENTIONS if "seconds" in steps.get(a, {})}


def _describe_table(name, found):
    prepare, run = _commands(found)
    head, *rows = found.get("table", []) or [
        "| | softmax | SVDA | SVDA - softmax | p |"
    ]
    num_columns = head.count("|") - 2
    lines = [
        "## The table to fill, and the line that fills it",
        "",
        f"    {run}",
        "",
        f"trains both attentions with seeds 0 to {NUM_SEEDS - 1} on all devices that "
        f"are there and writes the table, figures and report to {name}/; stopped, the "
        "same line goes on. The data are prepared once before it:",
        "",
        f"    {prepare}",
        "",
        "With `experiments.paper.prune` and `experiments.paper.atlas` in its place the "
        "line prunes the trained models and draws their atlas.",
        "",
        head,
        "|---" * (num_columns + 1) + "|",
    ]
    return lines + [f"| {row} {'| not yet run ' * num_columns}|" for row in rows]


def _describe_cost(found):
    config, estimates = found["config"], found["estimates"]
    data = DATA[config["dataset"]["name"]]
    num_evaluations = config["num_epochs"] / config["eval_every_epochs"]
    evaluated = num_evaluations * data.num_eval / config["num_epochs"] / data.num_train
    lines = [
        "## What compilers estimate",
        "",
        f"A training step of {config['batch_size']} images, {data.num_train:,} images "
        f"an epoch, {config['num_epochs']} epochs. No device was there and nothing in "
        "this table was measured. For the TPU a step takes the cycles that its "
        "compiler estimates, without waiting for other devices; loops whose turns are "
        "random count as one. "
        "For the GPU, whose compiler estimates no time, it takes what its matrix "
        "products alone or its memory traffic alone would at the card's peak, "
        "whichever is longer: a floor. On an H200, whose memory is 1.4 times as fast, "
        "steps of ViT-S/16 and of the CIFAR model took three and four times such a "
        "floor of its own ([measured](../h200/benchmark_peers.md)). Hours are of all "
        f"devices together, of training alone; evaluation sees {evaluated:.1%} as many "
        "images as training, forward only.",
        "",
        "| device | attention | cycles a step | ms a step | longer alone | "
        "GB of memory held (has) | s an epoch | device hours a run |",
        "|---" * 8 + "|",
    ]
    totals, wheres = [], []
    for machine, (_, count) in TARGETS.items():
        target = describe_target(machine)
        if machine not in estimates:
            lines.append(f"| {target} {'| not at hand ' * 7}|")
            continue
        steps = _steps(found, machine)
        for attention in ATTENTIONS:
            head = f"| {target} | {attention}"
            if attention not in steps:
                lines.append(f"{head} {'| does not fit ' * 6}|")
                continue
            step = steps[attention]
            epoch = step["seconds"] * data.num_train / config["batch_size"]
            hours = device_hours(step, config, machine, data.num_train)
            cycles = f"{step['cycles']:,.0f}" if step["cycles"] else "not estimated"
            lines.append(
                f"{head} | {cycles} | {1000 * step['seconds']:.2f} | {step['bound']} | "
                f"{step['held'] / 1e9:.2f} ({MACHINES[machine].memory / 1e9:.0f}) | "
                f"{epoch:.2f} | {hours:.2f} |"
            )
        if total := _total_hours(found, machine):
            least = "" if MACHINES[machine].clock else "at least "
            clock = f", {total / count:.2f} by the clock" if count > 1 else ""
            totals.append(f"{least}{total:.2f} device hours on {target}{clock}")
        wheres.append(
            f"{target}: compiled at commit {estimates[machine]['commit']} on "
            f"{estimates[machine]['where']}"
        )
    if totals:
        lines += [
            "",
            f"Both attentions, {NUM_SEEDS} seeds, by these estimates: "
            f"{'; '.join(totals)}.",
        ]
    return lines + [line for where in wheres for line in ("", where)]


def _describe_input(found):
    config, timed = found["config"], found["input"]
    lines = ["## Input, timed here", "", found["where"], ""]
    if not timed:
        return [*lines, "No figure; the stages say why."]
    rate, core = timed["images a second"], timed["images a second of a core"]
    opened = f"Opened in {timed['seconds to open']:.1f} s"
    if not config["dataset"]["streaming"]:
        return [
            *lines,
            f"{opened}, which decodes all images and puts them on the device. Batches "
            f"of 64 then came at {rate:,.0f} images/s, gathered on the device, which "
            "here is the processor; an accelerator's step waits for no file.",
        ]
    data = DATA[config["dataset"]["name"]]
    lines += [
        f"Made-up JPEGs of {data.size[0]} x {data.size[1]}, {timed['kilobytes']:.0f} "
        "kB on average, pieces of two photographs. "
        f"{opened}; batches of 64, read, decoded, cropped and scaled by the processor, "
        f"then came at {rate:,.0f} images/s. By the time that all threads spent on a "
        f"processor, a core gives **{core:,.0f} images/s**. That the files come out of "
        "a cache and not off a disk is not in it.",
        "",
        "| device | images/s that a step takes | cores that give them |",
        "|---|---|---|",
    ]
    for machine in TARGETS:
        if steps := _steps(found, machine):
            step = min(steps.values(), key=lambda step: step["seconds"])
            needed = config["batch_size"] / step["seconds"]
            most = "" if MACHINES[machine].clock else "at most "
            lines.append(
                f"| {describe_target(machine)} | {most}{needed:,.0f} | "
                f"{most}{needed / core:,.0f} |"
            )
    return lines


def _describe_stages(found):
    seconds = (f"{name} {value:.0f}" for name, value in found["seconds"].items())
    return [
        "## Every stage, run here in small",
        "",
        "Made-up images in the layout of the real files, one seed and one epoch of 128 "
        "images with a model of 2 blocks of width 16: whether all stages fit together, "
        "and nothing else. Their accuracies mean nothing and are not kept. Seconds: "
        f"{', '.join(seconds)}.",
        "",
        "| stage | outcome |",
        "|---|---|",
        *(
            f"| {stage} | {_describe_outcome(said)} |"
            for stage, said in found["stages"].items()
        ),
    ]


def _describe_outcome(said):
    if said is None:
        return "not yet rehearsed"
    return f"broke: {said}" if said else "OK"
