"""Bytes that a compiled program's instructions read and write, from its text.

XLA has no model of cost for GPUs. There each instruction of a computation that is not
fused is a kernel, or memory that is copied: it reads its operands and writes its
result, once. That is a floor: what caches save or cost is not in it.
"""

import collections
import math
import re
from typing import NamedTuple

# What moves nothing: names for what is in memory already.
_NAMES = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
}
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\((.*)"
)
_SLICES = ("slice", "dynamic-slice", "gather")


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
      name: of its result.
      shape: the result's, as text.
      op: what it does.
      operands: their names.
      line: the whole of it.
      root: whether it is the computation's result.
    """

    name: str
    shape: str
    op: str
    operands: list[str]
    line: str
    root: bool


def count_bytes(text):
    """Bytes that a program reads and writes.

    Of an operand that a fusion takes slices of, and of a result that it updates a slice
    of, the slices count; of a kernel's results not the memory that it only works in.
    Loops count as often as they run.

    Args:
      text: of a compiled program, all computations.
    """
    computations = _read(text)

    def count(name):
        shapes, total = {}, 0
        for one in computations[name]:
            shapes[one.name] = _size(one.shape)
            if one.op in ("while", "call"):
                inner = re.search(r"(?:body|to_apply)=%?([\w.-]+)", one.line)[1]
                times = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.line)
                total += (int(times[1]) if times else 1) * count(inner)
                continue
            if one.op in _NAMES or one.op.endswith("-done"):
                continue
            if one.op == "fusion":
                fused = re.search(r"calls=%?([\w.-]+)", one.line)[1]
                total += _count_fusion(computations[fused])
                continue
            result = one.shape
            if one.op == "custom-call":  # the last of several is where it works
                result = re.sub(r", [su]8\[\d+\]\S*\)$", ")", result)
            total += _size(result) + sum(shapes[x] for x in set(one.operands))
        return total

    return count("ENTRY")


def _read(text):
    computations, name = {}, None
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = "ENTRY" if start[1] else start[2]
            computations[name] = []
        elif name and (found := _INSTRUCTION.match(line)):
            root, result, shape, op, rest = found.groups()
            operands = re.findall(r"%([\w.-]+)", _close(rest))
            one = Instruction(result, shape, op, operands, line, bool(root))
            computations[name].append(one)
    return computations


def _close(text):
    """A text up to the bracket that closes one opened before it."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:at]
    return text


def _count_fusion(instructions):
    by_name = {one.name: one for one in instructions}
    users = collections.defaultdict(list)
    for one in instructions:
        for operand in set(one.operands):
            users[operand].append(one)

    def count_read(name, whole):
        total = 0
        for user in users[name]:
            if user.op == "bitcast" and not user.root:
                total += count_read(user.name, whole)
            elif user.operands[0] == name and user.op in _SLICES:
                total += _size(user.shape)
            elif user.operands[0] != name or user.op != "dynamic-update-slice":
                return whole
        return min(total, whole)

    def count_written(one):
        while one.op == "bitcast":
            one = by_name[one.operands[0]]
        if one.op == "tuple":
            return sum(count_written(by_name[x]) for x in one.operands)
        if one.op == "dynamic-update-slice":
            return _size(by_name[one.operands[1]].shape)
        return _size(one.shape)

    return sum(
        count_read(one.name, _size(one.shape))
        for one in instructions
        if one.op == "parameter"
    ) + sum(count_written(one) for one in instructions if one.root)


def _size(shape):
    """Bytes of a shape or a tuple of them, such as "(bf16[2,3]{1,0}, pred[])"."""
    return sum(
        math.prod(map(int, filter(None, sizes.split(","))), start=_width(dtype))
        for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    )


def _width(dtype):
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1  # pred, token
