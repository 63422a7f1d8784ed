"""Converting a run: the SVDA run that comes of one with softmax attention."""

import copy

import jax

from svda_jax import UserError, place
from svda_jax.commands import parse
from svda_jax.prune.convert import convert
from svda_jax.prune.measure import measure_apart
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.train.derive import (
    check_new,
    evaluate,
    finetune,
    go_on_from,
    load_data,
    name_finetuned,
    write_run,
)


def convert_run(workdir, out, *, constant=0.0, finetune_epochs=0):
    """Writes the SVDA model that scores most like a softmax run's as a run.

    It is fitted to images of the training split, up to `measure.MAX_IMAGES`; what is
    reported is measured over the evaluation split.

    Args:
      workdir: the run's folder.
      out: the new run's folder, which must not exist.
      constant: see `convert.convert`; from 0 to 100.
      finetune_epochs: epochs that the SVDA model is trained for, in <out>-finetuned, at
        a tenth of the run's learning rate.

    Returns:
      The text of convert.md.

    Raises:
      UserError: an argument or a folder is not what it should be; nothing is written.
    """
    workdir, out = place(workdir), place(out)
    if not 0 <= constant <= 100:
        raise UserError(f"--constant={constant:g} must be from 0 to 100")
    check_new(out, finetune_epochs=finetune_epochs)
    run = runs.load(workdir)
    config, model = run.config, run.model
    if config.model.attention != "softmax":
        raise UserError(
            f"{workdir} has {config.model.attention} attention; only a run with "
            "softmax attention is converted"
        )
    if constant and 1 in (block.attention.factors.shape[-1] for block in model.blocks):
        raise UserError(
            f"--constant={constant:g} takes the place of a direction, and heads of "
            f"{workdir} have a single one; leave it out"
        )
    mesh, training, data = load_data(config)
    models = {"softmax": model, "SVDA": convert(model, training, constant=constant)}
    values = evaluate(config, models, data, mesh)
    apart = measure_apart(model, models["SVDA"], data)
    rule = f" --constant={constant:g}" * bool(constant)
    title = f"# {workdir.name}, converted to SVDA{rule}"
    text = "\n".join([title, "", *describe(values, apart), ""])
    converted = copy.deepcopy(config)
    with converted.unlocked():
        converted.model.attention = "svda"
    files = {"convert.md": text}
    write_run(run, converted, models["SVDA"], values["SVDA"], out, mesh, files)
    if finetune_epochs:
        finetune(out, name_finetuned(out), epochs=finetune_epochs)
    return text


def describe(values, apart):
    """What conversion did to the run, line by line.

    Args:
      values: of an evaluation, by model.
      apart: from `measure_apart`.
    """
    heads = [f"head {h + 1}" for h in range(apart["size"].shape[-1])]
    lines = [
        f"JAX {jax.__version__}, {jax.devices()[0].device_kind}.",
        "",
        f"| | {' | '.join(values)} |",
        "|---" * (1 + len(values)) + "|",
    ]
    for name, key, form in (
        ("accuracy (%)", "eval_accuracy", lambda x: f"{100 * x:.2f}"),
        ("cross-entropy (nats)", "eval_loss", "{:.4f}".format),
    ):
        cells = [form(float(one[key])) for one in values.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "How far SVDA's scores are from softmax attention's over the evaluation split, "
        "each model with its own inputs: root mean square (logits, each row's mean "
        "left out), in brackets over the size of softmax attention's; and the total "
        "variation distance of their rows of attention, 0 to 1:",
        "",
        f"| layer | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    logits, size, weights = (apart[name] for name in ("logits", "size", "weights"))
    for layer in range(len(size)):
        cells = [
            f"{x:.3g} ({x / y:.1%}), {w:.3f}"
            for x, y, w in zip(logits[layer], size[layer], weights[layer], strict=True)
        ]
        lines.append(f"| {layer + 1} | {' | '.join(cells)} |")
    return lines


def main(argv=None):
    """Runs the command line."""
    args = parse("convert", argv)
    quiet_orbax()
    options = vars(args)  # of `convert_run` too
    workdir, out = options.pop("workdir"), options.pop("out")
    out = place(out or runs.name_out(place(workdir), "converted"))
    text = convert_run(workdir, out, **options)
    print(f"\n{text}\nThe SVDA model is the run {out}. Train it further with")
    print("  " + go_on_from(out, finetuned=args.finetune_epochs > 0))
