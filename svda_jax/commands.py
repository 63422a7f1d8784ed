"""What follows `svda COMMAND`: read and explained before anything slow is imported."""

import argparse
from typing import NamedTuple


class Command(NamedTuple):
    """One of the program's commands.

    Attributes:
      function: module:name of what runs it, from the arguments as they were typed.
      line: what it does, in one.
      text: what --help says more.
      arguments: each what `ArgumentParser.add_argument` takes; of those in a list only
        one may be given.
    """

    function: str
    line: str
    text: str = ""
    arguments: tuple = ()


def _argument(*names, **options):
    return names, options


def _switch(name, text):
    return _argument(name, action="store_true", help=text)


_WORKDIR = _argument("--workdir", required=True, help="the run's folder")
_FINETUNE = _argument(
    "--finetune_epochs", type=int, default=0, help="of training on (default: 0)"
)
_OUT_RUN = _argument("--out", help="folder of the new run (default: beside the other)")

COMMANDS = {
    "train": Command("svda_jax.main:program", "Trains a Vision Transformer."),
    "evaluate": Command(
        "svda_jax.look.evaluate:main",
        "Says how well a run classifies.",
        """\
    svda evaluate --workdir RUN                  # the split that the run evaluates
    svda evaluate --workdir RUN --split train    # in TFDS's notation
    svda evaluate --workdir RUN photos/ --json   # a folder of images for each class

Prints accuracy, loss in nats, the accuracy of each class and which it is most often
taken for, and, of at most 20 classes, the confusion matrix. Images of a folder that
cannot be read are left out, counted and named, and the exit code is 1.""",
        (
            _WORKDIR,
            [
                _argument("--split", default="", help="in place of the run's own"),
                _argument("folder", nargs="?", metavar="DIR", help="of class folders"),
            ],
            _switch("--json", "print a JSON object"),
        ),
    ),
    "predict": Command(
        "svda_jax.look.explain:main",
        "Says what is on images, and why.",
        """\
    svda predict --workdir runs/digits-svda-0 cat.jpg photos/
    find . -name '*.png' | svda predict --workdir RUN --json -

A line a file: its most probable classes. Folders are searched for images, "-" reads
paths from standard input. --explain also writes a picture a file: attention followed
through all layers, over the image, and that of the heads without which the model would
be least sure of its answer, with what each is worth to it: the logit of the class, less
that without the head. What cannot be read is named at the end, and the exit
code is 1; the others go on.""",
        (
            _WORKDIR,
            _argument("images", nargs="+", metavar="IMAGE", help="files, folders, -"),
            _argument(
                "--top", type=int, default=3, help="classes of each file (default: 3)"
            ),
            _switch("--json", "a JSON object a file"),
            _switch("--explain", "draw where it looked"),
            _argument(
                "--out",
                default="explained",
                help="folder of the pictures (default: explained)",
            ),
        ),
    ),
    "report": Command(
        "svda_jax.look.report:main",
        "Writes a run as one HTML page.",
        """\
    svda report --workdir RUN --compare RUN --compare RUN

The page needs no network. Every number and picture in it is read off the runs'
histories or computed by their models here.""",
        (
            _WORKDIR,
            _argument(
                "--compare",
                metavar="RUN",
                action="append",
                default=[],
                help="a run to put beside it; may be given several times",
            ),
            _argument("--out", help="the page (default: report.html in workdir)"),
        ),
    ),
    "export": Command(
        "svda_jax.run.export:main",
        "Writes a run's model for other programs.",
        """\
    svda export --workdir runs/digits-svda-0 --format=onnx

writes the folder <run>-<format>, or --out, with the model, model.json (classes,
preprocessing, evaluation, config, versions) and a model card, README.md, whose lines
load it.

stablehlo    model.stablehlo, a program for JAX on CPUs, GPUs and TPUs
onnx         model.onnx, one for ONNX Runtime and others; activations are float32
safetensors  model.safetensors, parameters: as timm has them, with a config.json that
             timm and transformers open; of SVDA or pruned models, which timm has not,
             under names of this program
npz          model.npz, parameters as vision_transformer (AugReg) has them, and sigma

A program takes any number of images as they are stored, `[b, S, S, channels]` uint8,
and gives "probabilities" `[b, C]`; with --attention also "attention" `[b, L, H, N, N]`,
all weights of all layers and heads. Of parameters --config.init_from starts.""",
        (
            _WORKDIR,
            _argument("--format", required=True, help="one of those above"),
            _argument(
                "--out", help="the folder that is written (default: <run>-<format>)"
            ),
            _switch("--attention", "give attention too"),
        ),
    ),
    "prune": Command(
        "svda_jax.prune.run:main",
        "Prunes the directions of a run's scores.",
        """\
    svda prune --workdir RUN --rank 6
    svda prune --workdir RUN --rho 0.95 --basis sigma

A head's score is a sum of directions, each of its own size. The strongest stay: as many
as --rank says, or hold a share --rho of the energy, or move scores by no more than
--bound; of these rules one may be given. What directions are is the basis: "score", the
singular ones over the run's training images, "weights", those of the weights alone, or
"sigma", SVDA's coordinates.

Prints what accuracy, parameters and time become; the smaller model is a run again.""",
        (
            _WORKDIR,
            _argument(
                "--basis",
                default="score",
                help="score, weights or sigma (default: score)",
            ),
            _argument(
                "--rho",
                type=float,
                help="share kept of the energy; 0.99 where no rule is given",
            ),
            _argument("--rank", type=int, help="directions kept of a head"),
            _argument(
                "--bound",
                type=float,
                help="logits that scores may move by, were queries and keys "
                "independent",
            ),
            _switch("--pooled", "one budget for all heads together"),
            _argument(
                "--norm_columns",
                type=int,
                default=3,
                help="that stand in the lengths (default: 3)",
            ),
            _argument("--multiple", type=int, default=1, help="round widths up to"),
            _OUT_RUN,
            _FINETUNE,
        ),
    ),
    "convert": Command(
        "svda_jax.prune.convert_run:main",
        "Makes a softmax run an SVDA run.",
        """\
    svda convert --workdir RUN --finetune_epochs 5

The SVDA model that scores most like the softmax model: queries and keys turned to the
singular directions of each head's score over the run's training images, and sigma
fitted to the scores. A softmax score has no unit lengths; with a constant beside them
lengths vary less, which is nearer to it and says less.""",
        (
            _WORKDIR,
            _OUT_RUN,
            _argument(
                "--constant",
                type=float,
                default=0.0,
                help="in place of the weakest direction, over the lengths; 2 is near "
                "softmax",
            ),
            _FINETUNE,
        ),
    ),
    "atlas": Command(
        "svda_jax.atlas.page:main",
        "Shows what a head's directions are for.",
        """\
    svda atlas --workdir RUN

writes atlas.html, which needs no network, and its numbers, atlas.nc, into RUN. What the
page shows of a head it makes when the head is opened, so that many heads cost no more
than a few.""",
        (
            _WORKDIR,
            _argument("--out", help="the page (default: atlas.html in workdir)"),
            _argument(
                "--directions",
                type=int,
                default=4,
                help="shown of each head (default: 4)",
            ),
            _argument(
                "--images",
                type=int,
                default=2000,
                help="looked through (default: 2000)",
            ),
            _argument(
                "--removed",
                type=int,
                default=256,
                help="of these, that each direction is taken away for (default: 256)",
            ),
        ),
    ),
    "prepare": Command(
        "svda_jax.data.prepare:main",
        "Puts a data set on disk.",
        """\
    svda prepare my_flowers --from DIR
    svda prepare fashion_mnist --from DIR
    svda prepare cifar10 --from cifar-10-python.tar.gz
    svda prepare food101 --from food-101.tar.gz
    svda prepare imagenet2012 --from DIR
    svda prepare imagenet100 --from DIR --class_list FILE
    svda prepare cifar10

DIR holds the four IDX files of FashionMNIST, gzipped or not; CIFAR-10 and CIFAR-100 are
taken from an archive as published, "python" or "binary", what it unpacks to, or a
folder with either, Food-101 from its archive; ImageNet, or the classes whose WordNet
ids are in a file, from a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar
and ILSVRC2012_devkit_t12.tar.gz. For every other name DIR has train/ and val/ with a
folder of images for each class, or train.X1/, ... and val.X/, or the class folders
alone. What cannot be taken is counted and named at the end; --strict refuses it.
Without --from the data set is downloaded, for which all but FashionMNIST, CIFAR,
Food-101 and the digits need TensorFlow.""",
        (
            _argument("name", help="of the data set"),
            _argument("--from", dest="source", metavar="DIR_OR_ARCHIVE"),
            _argument("--data_dir", help="where TFDS keeps data sets"),
            _switch("--strict", "leave nothing out"),
            _argument("--class_list", metavar="FILE", help="of ImageNet's classes"),
        ),
    ),
    "runs": Command(
        "svda_jax.run.compare:main",
        "Lists runs: how they differ and ended.",
        """\
    svda runs DIR
    svda runs DIR --csv > runs.csv

A line a run: the options that are not the same in all, and of the last evaluation
epoch, accuracy, loss in nats and effective rank of the score, mean over heads. What is
damaged is named behind, and the exit code is 1.""",
        (
            _argument("folder", metavar="DIR", help="runs, say"),
            [
                _switch("--csv", "print comma-separated values"),
                _switch("--json", "print a JSON list"),
            ],
        ),
    ),
    "verify": Command(
        "svda_jax.run.verify:main",
        "Checks the checkpoints of a run.",
        """\
    svda verify --workdir RUN

lists them, says which are damaged and where the run would go on. The exit code is 1
where no good one is left.""",
        (
            _WORKDIR,
            [
                _switch("--json", "print a JSON object"),
                _switch("--quiet", "the exit code alone"),
            ],
        ),
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def parse(name, argv=None):
    """The arguments of a command; a line that cannot be read ends in one, code 2.

    Args:
      name: of `COMMANDS`.
      argv: what follows it, by default the program's arguments.
    """
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"svda {name}",
        description=f"{command.line}\n\n{command.text}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in command.arguments:
        group, several = parser, argument
        if isinstance(argument, list):
            group = parser.add_mutually_exclusive_group()
        else:
            several = [argument]
        for names, options in several:
            group.add_argument(*names, **options)
    return parser.parse_args(argv)
