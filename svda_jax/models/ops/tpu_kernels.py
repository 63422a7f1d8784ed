"""The kernels of attention on TPUs, forward, backward, and for the indicators.

A program of a kernel works on the tokens of an image, or of as many small ones as fill
the 128 lanes. It holds everything transposed, tokens in the lanes: a head is then a
slice of rows, `[K, M]`, sums over its width add up registers, and so do sums over the
keys of its scores `[keys, queries]`. Heads of images of at most 64 tokens share lanes:
their queries stand side by side, and one product gives the scores of all of them.

Everything is done for several heads, step by step, so that no unit of a core waits for
another: head by head the kernels take up to twice as long.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from svda_jax.models.ops.plain import EPSILON, perturb

LANES = 128
# Scores that are worked on at once: more of them wait in VMEM, and have to be fetched.
WAVE_SIZE = 160 * 1024


class Layout(NamedTuple):
    """How the heads of a program's images lie in its operands.

    Attributes:
      num_heads: H.
      num_tokens: N, of an image.
      stacked: images of a program.
    """

    num_heads: int
    num_tokens: int
    stacked: int

    @classmethod
    def of(cls, x):
        """That of queries, keys or values `[B, N, H, K]`."""
        batch, num_tokens, num_heads, _ = x.shape
        return cls(num_heads, num_tokens, count_stacked(batch, num_tokens, x.dtype))

    @property
    def size(self):
        """M, tokens of a program."""
        return self.stacked * self.num_tokens

    @property
    def transposed(self):
        """Whether operands are `[H K, B N]`, which projections write as readily as
        `[B N, H K]`. Blocks of columns have whole tiles of lanes."""
        return self.size % LANES == 0

    def flatten(self, x):
        """`[B, N, H, K]` -> `[H K, B N]` or `[B', M, H K]`."""
        if self.transposed:
            return x.reshape(-1, x.shape[2] * x.shape[3]).T
        return x.reshape(-1, self.size, x.shape[2] * x.shape[3])

    def restore(self, x):
        """What `flatten` was given, but for its shape."""
        return x.T if self.transposed else x

    def count_programs(self, x):
        """B', from an operand."""
        return x.shape[1] // self.size if self.transposed else len(x)

    def read(self, ref, dtype=None):
        """The heads of a block, `[K, M]` each."""
        x = ref[...] if self.transposed else ref[...].T
        return jnp.split(x.astype(dtype or x.dtype), self.num_heads)

    def read_rows(self, ref):
        """A block as `[M, H K]`."""
        return ref[...].T if self.transposed else ref[...]

    def write(self, ref, heads):
        """Writes heads `[K, M]` to a block."""
        x = jnp.concatenate(heads).astype(ref.dtype)
        ref[...] = x if self.transposed else x.T

    def waves(self, arrays=1):
        """Lists of parts that are worked on at once: (heads, columns of an image).

        Args:
          arrays: how many of the size of the scores each of them needs.
        """
        most = max(LANES // self.num_tokens, 1)
        parts = [
            (range(h, min(h + most, self.num_heads)), slice(i, i + self.num_tokens))
            for i in range(0, self.size, self.num_tokens)
            for h in range(0, self.num_heads, most)
        ]
        lanes = -(-most * self.num_tokens // LANES) * LANES
        number = max(WAVE_SIZE // (arrays * self.num_tokens * lanes), 1)
        return [parts[i : i + number] for i in range(0, len(parts), number)]

    def stack(self, heads, part):
        """Of a part, its heads one above the other: `[g K, N]`."""
        return jnp.concatenate([heads[h][:, part[1]] for h in part[0]])

    def spread(self, heads, part):
        """The same, each head in columns of its own: block diagonal, `[g K, g N]`."""
        return jnp.concatenate(
            [
                jnp.concatenate(
                    [x if i == h else jnp.zeros_like(x) for i in part[0]], axis=1
                )
                for h in part[0]
                for x in [heads[h][:, part[1]]]
            ]
        )

    def cut(self, rows, part):
        """Of `[M, H K]` a part's tokens and heads: `[N, g K]`."""
        width = rows.shape[1] // self.num_heads
        return rows[part[1], part[0].start * width : part[0].stop * width]

    def gather(self, parts):
        """The heads `[K, M]` of blocks `[K, N]` by (head, start of an image)."""
        starts = range(0, self.size, self.num_tokens)
        return [
            jnp.concatenate([parts[h, i] for i in starts], axis=1)
            for h in range(self.num_heads)
        ]


def count_stacked(batch, num_tokens, dtype):
    """How many images share a program, so that small ones fill the lanes.

    A divisor of the batch; 1 where stacking would move tokens within their tiles.
    """
    if num_tokens % (32 // jnp.dtype(dtype).itemsize):
        return 1
    sizes = range(1, max(LANES // num_tokens, 1) + 1)
    return max(size for size in sizes if batch % size == 0)


def forward(layout, unit, query, key, value, sigma, out):
    """Attention of a program: reads and writes blocks."""
    q_hat, k_hat = (layout.read(ref, jnp.float32) for ref in (query, key))
    if unit:
        q_hat, k_hat = ([_normalize(x)[0] for x in heads] for heads in (q_hat, k_hat))
    q = _scale(q_hat, sigma, query.dtype)
    keys = _to_rows(k_hat, key, layout, unit)
    v, found = layout.read(value), {}
    for wave in layout.waves():
        scores = [
            _dot(layout.cut(keys, part), layout.spread(q, part), (1, 0))
            for part in wave
        ]
        found |= _apply(layout, wave, v, [*map(_weigh, scores)])
    layout.write(out, layout.gather(found))


def backward(layout, unit, query, key, value, grad, sigma, *outs):
    """Its gradient, of query, key, value and, `[1, H K]`, sigma."""
    q_hat, k_hat = (layout.read(ref, jnp.float32) for ref in (query, key))
    if unit:
        q_hat, *of_query = zip(*map(_normalize, q_hat), strict=True)
        k_hat, *of_key = zip(*map(_normalize, k_hat), strict=True)
    q, k = _scale(q_hat, sigma, query.dtype), _cast(k_hat, key.dtype)
    keys, values = _to_rows(k_hat, key, layout, unit), layout.read_rows(value)
    g, to_query, to_key, to_value = layout.read(grad), {}, {}, {}
    for wave in layout.waves():
        queries = [layout.spread(q, part) for part in wave]
        scores = [
            _dot(layout.cut(keys, part), x, (1, 0))
            for part, x in zip(wave, queries, strict=True)
        ]
        weights, totals = zip(*map(_weigh, scores), strict=True)
        grads = [  # of what was divided by the totals
            (layout.spread(g, part).astype(jnp.float32) / total).astype(grad.dtype)
            for part, total in zip(wave, totals, strict=True)
        ]
        changes = [
            _dot(layout.cut(values, part), x, (1, 0))
            for part, x in zip(wave, grads, strict=True)
        ]
        of_values = [
            _dot(x, w.astype(value.dtype), (1, 1))
            for x, w in zip(grads, weights, strict=True)
        ]
        alongs = [
            jnp.sum(w * x, axis=0, keepdims=True) / total
            for w, x, total in zip(weights, changes, totals, strict=True)
        ]
        changes = [  # of scores
            (w * (x - along)).astype(query.dtype)
            for w, x, along in zip(weights, changes, alongs, strict=True)
        ]
        of_keys = [_dot(x, y, (1, 1)) for x, y in zip(queries, changes, strict=True)]
        of_queries = [
            _dot(layout.stack(k, part), x, (1, 0))
            for part, x in zip(wave, changes, strict=True)
        ]
        for part, x, y, z in zip(wave, of_queries, of_keys, of_values, strict=True):
            to_query |= _name(part, _diagonal(x, part))
            to_key |= _name(part, jnp.split(y, len(part[0])))
            to_value |= _name(part, jnp.split(z, len(part[0])))
    # Of q_hat sigma, [K, M] of each head.
    to_query, to_key = layout.gather(to_query), layout.gather(to_key)
    products = zip(to_query, q_hat, strict=True)
    to_sigma = [jnp.sum(x * y, axis=1, keepdims=True) for x, y in products]
    to_query = _scale(to_query, sigma, jnp.float32)
    if unit:
        to_query = list(map(_tangential, to_query, q_hat, *of_query))
        to_key = list(map(_tangential, to_key, k_hat, *of_key))
    heads = (to_query, to_key, layout.gather(to_value))
    for ref, parts in zip(outs[:3], heads, strict=True):
        layout.write(ref, parts)
    outs[3][...] = jnp.concatenate(to_sigma).T


def observe_rows(layout, function, unit, query, key, value, mask, sigma, *refs):
    """`plain.observe` of a program: `[H, M]` for each leaf of the function's result."""
    noise, attended, outs, seconds = refs[:2], refs[2], refs[3:-1], refs[-1]
    exact = [layout.read(ref, jnp.float32) for ref in (query, key)]
    total = functools.partial(jnp.sum, axis=0, keepdims=True)
    moved = [
        [
            perturb(*x, total)
            for x in zip(heads, jnp.split(changes[...], len(heads)), strict=True)
        ]
        for heads, changes in zip(exact, noise, strict=True)
    ]
    directions = [[_normalize(x)[0] for x in heads] for heads in exact]
    if unit:
        exact = directions
        moved = [[_normalize(x)[0] for x in heads] for heads in moved]
    _add_moments(layout, seconds, mask, exact, query.dtype)
    operands = [  # queries `[K, M]`, keys `[M, H K]`, of cosines, weights, perturbed
        (_cast(directions[0], query.dtype), _stack_rows(directions[1], key.dtype)),
        (_scale(exact[0], sigma, query.dtype), _stack_rows(exact[1], key.dtype)),
        (_scale(moved[0], sigma, query.dtype), _stack_rows(moved[1], key.dtype)),
    ]
    v, found, found_out = layout.read(value), [{} for _ in outs], {}
    for wave in layout.waves(len(operands)):
        cosines, *scores = (
            [_dot(layout.cut(k, part), layout.spread(q, part), (1, 0)) for part in wave]
            for q, k in operands
        )
        exact, moved = ([*map(_weigh, x)] for x in scores)
        found_out |= _apply(layout, wave, v, exact)
        weights, perturbed = (
            [x / total for x, total in pair] for pair in (exact, moved)
        )
        for part, *arrays in zip(wave, cosines, weights, perturbed, strict=True):
            names = ("cosines", "weights", "perturbed")
            arrays = {n: x[None] for n, x in zip(names, arrays, strict=True)}
            rows = jax.vmap(function, -1, -1)(arrays)  # [1, g N]
            for parts, row in zip(found, jax.tree.leaves(rows), strict=True):
                parts |= _name(part, jnp.split(row, len(part[0]), axis=1))
    layout.write(attended, layout.gather(found_out))
    for out, parts in zip(outs, found, strict=True):
        out[...] = jnp.concatenate(layout.gather(parts))


def _add_moments(layout, out, mask, heads, dtype):
    """Adds `plain.second_moments`, times the number of tokens."""

    @pl.when(pl.program_id(0) == 0)
    def start():
        out[...] = jnp.zeros_like(out)

    def centre(x):
        images = jnp.split(x, layout.stacked, axis=1)
        means = (jnp.mean(y, axis=1, keepdims=True) for y in images)
        return jnp.concatenate([*map(jnp.subtract, images, means)], axis=1)

    moments, number = [], max(LANES // len(heads[0][0]), 1)
    for side in (heads[0], [*map(centre, heads[1])]):
        for some in (side[i : i + number] for i in range(0, len(side), number)):
            x = jnp.concatenate(some)  # [g K, M]
            product = _dot((x * mask[...]).astype(dtype), x.astype(dtype), (1, 1))
            moments += _diagonal(product, (some, None))
    out[...] += jnp.concatenate(moments)


def _apply(layout, wave, v, weighed):
    """Heads `[V, N]`, by `_name`, of a wave's weights and their sums."""
    outs = [
        _dot(layout.stack(v, part), weights.astype(v[0].dtype), (1, 0))
        for part, (weights, _) in zip(wave, weighed, strict=True)
    ]
    found = {}
    for part, x, (_, total) in zip(wave, outs, weighed, strict=True):
        found |= _name(part, _diagonal(x / total, part))
    return found


def _cast(heads, dtype):
    return [x.astype(dtype) for x in heads]


def _stack_rows(heads, dtype):
    """`[M, H K]` of heads `[K, M]`."""
    return jnp.concatenate(_cast(heads, dtype)).T


def _scale(heads, sigma, dtype):
    """Heads `[K, M]` times their sigma."""
    factors = jnp.split(sigma[...], len(heads))  # [K, 1]
    return [(x * s).astype(dtype) for x, s in zip(heads, factors, strict=True)]


def _to_rows(k_hat, key, layout, unit):
    """The keys that scores are computed with, `[M, H K]`."""
    if not unit:
        return layout.read_rows(key)
    return _stack_rows(k_hat, key.dtype)


def _diagonal(x, part):
    """The blocks on the diagonal of `[g K, g N]`."""
    number = len(part[0])
    rows = jnp.split(x, number)
    return [jnp.split(row, number, axis=1)[i] for i, row in enumerate(rows)]


def _name(part, blocks):
    return {(h, part[1].start): x for h, x in zip(part[0], blocks, strict=True)}


def _weigh(scores):
    """exp of scores `[keys, queries]` and their sums `[1, queries]`."""
    weights = jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True))
    return weights, jnp.sum(weights, axis=0, keepdims=True)


def _normalize(x):
    """x_hat of `[K, M]`, 1 / max(||x||, EPSILON), whether ||x|| is the larger."""
    squared = jnp.sum(jnp.square(x), axis=0, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(squared, EPSILON**2))
    return x * inverse, inverse, squared > EPSILON**2


def _tangential(grad, x_hat, inverse, is_long):
    """The gradient less its part along x, which has no effect on x_hat."""
    along = jnp.sum(grad * x_hat, axis=0, keepdims=True)
    return (grad - x_hat * jnp.where(is_long, along, 0)) * inverse


def _dot(a, b, axes):
    """The product over one axis of each, added up in float32."""
    axes = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
