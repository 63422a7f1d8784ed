"""A table of measurements, the machine it was made on, and variants side by side."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
from typing import Any

import jax

from svda_jax.devices.memory import keep_memory
from svda_jax.devices.timing import Spread


@dataclasses.dataclass
class Table:
    """What a benchmark found.

    Attributes:
      title: of the page.
      text: what was measured and how.
      columns: names.
      rows: of as many cells each, texts, numbers or `Spread`s.
      notes: paragraphs behind the table.
      packages: whose versions matter, beside JAX, Flax and NumPy.
      pictures: PNG by name.
      second: column with which a second table starts, below the first, that has the
        first two columns too.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    second: str | None = None

    def write(self, name, out):
        """Writes benchmark_<name>.md, .json and pictures into a folder."""
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"benchmark_{name}"
        where = describe_machine(self.packages)
        command = f"python -m experiments.benchmarks {name}"
        lines = [f"# {self.title}", "", self.text, "", where, "", f"    {command}"]
        for part in self._split():
            head = _row(self.columns[i] for i in part)
            lines += ["", head, _row(["---"] * len(part))]
            lines += [_row(row[i] for i in part) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        for picture, data in self.pictures.items():
            path.with_name(f"{path.name}_{picture}.png").write_bytes(data)
            lines += ["", f"![{picture}]({path.name}_{picture}.png)"]
        text = "\n".join(lines) + "\n"
        path.with_suffix(".md").write_text(text)
        cells = [[_plain(cell) for cell in row] for row in self.rows]
        data = {
            "title": self.title,
            "text": self.text,
            "where": where,
            "command": command,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in cells],
            "notes": self.notes,
        }
        path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
        return text

    def _split(self):
        """Indices of the columns of each table on the page."""
        count = len(self.columns)
        if self.second is None:
            return [range(count)]
        start = self.columns.index(self.second)
        return [range(start), (0, 1, *range(start, count))]


def _row(cells):
    return f"| {' | '.join(map(str, cells))} |"


def _plain(cell):
    if isinstance(cell, Spread):
        return {"median": cell.median, "quartiles": [cell.low, cell.high]}
    return cell


@contextlib.contextmanager
def apart(variants):
    """Steps, each made and taken in a process of its own.

    What one model leaves in a process, its heap and its threads, changes the time of
    the next.

    Args:
      variants: calls that make a step, each a tuple of function and arguments, by name.

    Yields:
      For `measure`, functions that take the step and wait for it, by name.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        steps = {}
        for name, call in variants.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, *call), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            steps[name] = functools.partial(_ask, here)
        yield steps


def _ask(connection):
    connection.send("step")
    connection.recv()
    return ()


def _serve(connection, create, *args):
    keep_memory(restart=False)
    run = create(*args)
    while connection.recv():
        jax.block_until_ready(run())
        connection.send("done")


def describe_machine(packages=()):
    """On what, in how many threads and with which versions it was measured."""
    devices = jax.devices()
    packages = [p for p in ("jax", "flax", "numpy", *packages) if _is_installed(p)]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return (
        f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, "
        f"{threads or os.cpu_count()} processor cores and threads, "
        f"{f'GLIBC_TUNABLES={tunables}, ' if tunables else ''}"
        f"Python {platform.python_version()}, {', '.join(versions)}."
    )


def _is_installed(package):
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
