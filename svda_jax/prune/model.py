"""A trained model whose heads score with fewer directions.

A head's score is a bilinear form of its queries and keys, and a sum of directions:

    x_q^T F x_k = sum_k size_k (x_q^T a_k) (b_k^T x_k),  F = diag(sigma) / sqrt(K)

Which directions those are is the basis. In "score" they are the singular ones in the
metric of the data, in "weights" those in the metric of the weights alone
(`models.score`); of either the first r are the best r. In "sigma" they are the
coordinates, as in spectral energy retention (arXiv 2609.24370).

What is left of F has r directions, and orthonormal coordinates of queries and keys in
which it is diagonal (its singular vectors): SVDA again. In the *masked* model queries
and keys keep all their coordinates, turned, with sigma 0 in the others. Lengths do not
change, so that it is exact. The *shrunk* model has r coordinates, and n more with sigma
0 that stand for the others in the lengths: their main directions over the data, and one
constant for what remains. Scores are divided by the square root of the original K in
both. Softmax attention has no lengths to keep.

Axes: L layers, H heads, D width, K directions.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svda_jax.models.score import decompose
from svda_jax.models.vit import create_graphdef

BASES = ("score", "weights", "sigma")


class Directions(NamedTuple):
    """The score of each head of a layer, split up into directions.

    Attributes:
      query: `[H, K, K]` float64, a_k in column k.
      size: `[H, K]` float64, not negative; largest first but in the basis "sigma".
      key: `[H, K, K]` float64, b_k in column k.
    """

    query: np.ndarray
    size: np.ndarray
    key: np.ndarray

    def add_up(self, keep):
        """`[H, K, K]`, the form of those that are kept, `[H, K]` bool."""
        return self.query * (self.size * keep)[:, None] @ np.swapaxes(self.key, -1, -2)


def split(model, basis, moments):
    """The `Directions` of each layer.

    Args:
      model: a `ViT`; with softmax attention there is no basis "sigma".
      basis: one of `BASES`.
      moments: `[2, H, K, K]` for each layer, the mean over images of
        `plain.second_moments`; read in the basis "score" alone.
    """
    pairs = zip(model.blocks, moments, strict=True)
    return [_split(block.attention, basis, one) for block, one in pairs]


def _split(attention, basis, moments):
    factors = np.float64(attention.factors)
    if basis == "sigma":
        axes = np.eye(factors.shape[-1]) * np.ones_like(factors)[..., None]
        return Directions(axes * np.sign(factors)[:, None], np.abs(factors), axes)
    moments = attention.weight_moments if basis == "weights" else moments
    return Directions(*decompose(moments, factors))


def choose(sizes, *, rho=None, rank=None, bound=None, pooled=False):
    """The largest directions of each head, as few as one of three rules asks for.

    Args:
      sizes: of each layer's directions, `[H, K]`, of any sign.
      rho: share of the energy, sum size^2, that is kept, in (0, 1]; 1 keeps all.
      rank: directions that are kept, or all that a head has.
      bound: what the scores of a head may change by, root mean square, in logits, if
        the sizes are of the basis "score".
      pooled: whether the rule is for the mean over all heads of the model and the
        largest directions of all are kept, in place of one head at a time.

    Returns:
      A list of `[H, K]` bool, at least one True a head. Of equal directions the first
      is kept first; one without energy only where rho = 1 or a rank asks for it.
    """
    energies = [np.square(np.float64(size)) for size in sizes]
    if rho == 1:
        return [np.ones(energy.shape, bool) for energy in energies]
    heads = [head for energy in energies for head in energy]
    groups = [heads] if pooled else [[head] for head in heads]
    kept = [mine for group in groups for mine in _choose(group, rho, rank, bound)]
    ends = np.cumsum([len(energy) for energy in energies])[:-1]
    return [np.array(kept[i:j]) for i, j in zip([0, *ends], [*ends, None], strict=True)]


def _choose(heads, rho, rank, bound):
    """`choose` of heads that share a budget: `[K]` bool for each."""
    energy = np.concatenate(heads)
    ends = np.cumsum([len(head) for head in heads])[:-1]
    first = [
        start + head.argmax() for start, head in zip([0, *ends], heads, strict=True)
    ]
    rest = np.setdiff1d(np.arange(len(energy)), first)
    order = np.concatenate([first, rest[np.argsort(-energy[rest], kind="stable")]])
    energy = energy[order]
    if rank is not None:
        needed = np.arange(len(order)) < rank * len(heads)
    elif bound is not None:  # while what is left to keep is too much to lose
        needed = np.cumsum(energy[::-1])[::-1] > len(heads) * bound**2
    else:
        so_far = np.cumsum(energy)
        needed = so_far - energy < rho * so_far[-1]
    needed[: len(heads)] = True
    keep = np.zeros(len(order), bool)
    keep[order] = needed
    return np.split(keep, ends)


def foresee(sizes, keep):
    """How far scores move without the directions that are not kept, root mean square.

    Args:
      sizes: in the basis "score", `[..., K]`.
      keep: `[..., K]` bool.

    Returns:
      `[...]` in logits, for queries and keys that are independent.
    """
    return np.sqrt(np.sum(np.square(sizes * ~keep), axis=-1))


def mask(model, directions, keep):
    """The model with directions switched off, its arrays as large as before.

    Args:
      model: a `ViT`.
      directions: from `split`, for each layer.
      keep: `[H, K]` bool for each layer.
    """
    widths = [kept.shape[-1] for kept in keep]
    lengths = [np.zeros((2, *one.key.shape)) for one in directions]  # nothing to read
    return _rebuild(model, directions, keep, widths, lengths)


def shrink(model, directions, keep, lengths, *, norm_columns=3, multiple=1):
    """The model without directions.

    Heads of one layer that keep fewer than another have more columns that stand in the
    lengths; where there are none, zeros, which training leaves as they are: neither
    their gradient nor their decay is anything.

    Args:
      model: a `ViT`.
      directions: from `split`, for each layer.
      keep: `[H, K]` bool for each layer.
      lengths: `[2, H, K, K]` for each layer, the mean over tokens of x x^T, x queries
        and keys before they are normalised; not read for softmax attention.
      norm_columns: n; None leaves the others out of the lengths too.
      multiple: what the number of columns of a layer is rounded up to a multiple of, up
        to the number it had.

    Returns:
      A `ViT` whose config says the columns of each layer, `qk_dim`.
    """
    if model.config.attention == "softmax":
        norm_columns = None
    more = 0 if norm_columns is None else norm_columns + 1
    widths = []
    for kept in keep:
        most = int(kept.sum(-1).max()) + more
        widths.append(min(-(-most // multiple) * multiple, kept.shape[-1]))
    return _rebuild(model, directions, keep, widths, lengths if more else None)


def _rebuild(model, directions, keep, widths, lengths):
    """The model with what is kept of each form, in so many columns.

    Lengths are as to `shrink`; None where nothing stands in for the other directions.
    """
    config, params = model.config, nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for layer, (block, width) in enumerate(zip(model.blocks, widths, strict=True)):
        if keep[layer].all():
            continue  # as it is, bit for bit
        attention, there = block.attention, params["blocks"][layer]["attention"]
        u, s, vt = np.linalg.svd(directions[layer].add_up(keep[layer]))
        ranks = keep[layer].sum(-1)
        scoring = np.arange(width) < ranks[:, None]  # [H, width]
        sizes = s[:, :width] * scoring / attention.scale
        if attention.start is not None:
            there["relative_sigma"] = sizes / attention.start
        for side, basis in enumerate((u, np.swapaxes(vt, -1, -2))):
            name = ("query", "key")[side]
            columns = basis[..., :width] * scoring[:, None]  # [H, K, width]
            constants = np.zeros_like(sizes)
            if attention.start is None:
                columns *= np.sqrt(sizes)[:, None]
            elif lengths is not None:
                for head, rank in enumerate(ranks):
                    columns[head, :, rank:], constants[head, -1] = _stand_in(
                        basis[head, :, rank:], lengths[layer][side][head], width - rank
                    )
            kernel, bias = (np.float64(there[name][key]) for key in ("kernel", "bias"))
            there[name] = {
                "kernel": np.einsum("dhk,hkl->dhl", kernel, columns),
                "bias": np.einsum("hk,hkl->hl", bias, columns) + constants,
            }
    if any(width < kept.shape[-1] for width, kept in zip(widths, keep, strict=True)):
        config = dataclasses.replace(config, qk_dim=tuple(widths))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return nnx.merge(create_graphdef(config), params)


def _stand_in(others, moment, number):
    """Columns that stand in a length for other directions, and a constant for the last.

    Args:
      others: `[K, m]`, orthonormal.
      moment: `[K, K]`, the mean of x x^T; not read where number is m.
      number: of columns, the last of which is the constant where they are less than m.

    Returns:
      `[K, number]`, and a number.
    """
    if number == others.shape[-1]:
        return others, 0.0
    values, vectors = np.linalg.eigh(others.T @ moment @ others)
    values, main = values[::-1], others @ vectors[:, ::-1][:, : number - 1]
    constant = np.sqrt(max(values[number - 1 :].sum(), 0))
    return np.pad(main, ((0, 0), (0, 1))), constant
