"""Metrics as masked sums and counts, so that averages over a split are exact."""

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics


@flax.struct.dataclass
class ImageAverage(metrics.Metric):
    """Average over images of an array a piece, entry by entry.

    Attributes:
      total: sum over images, of the shape of one image's array.
      count: images summed up, int32.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def from_model_output(cls, values, mask, **_):
        """Sums `[B, ...]` over the images whose mask `[B]` is True."""
        keep = mask.reshape(-1, *[1] * (values.ndim - 1))
        total = jnp.sum(jnp.where(keep, values, 0), axis=0)
        return cls(total=total, count=jnp.sum(mask, dtype=jnp.int32))

    def merge(self, other):
        """The sums of both."""
        return type(self)(self.total + other.total, self.count + other.count)

    def compute(self):
        """The average."""
        return self.total / self.count


@flax.struct.dataclass
class MomentsAverage(ImageAverage):
    """The average of the "moments" of a model's output, already sums over images."""

    @classmethod
    def from_model_output(cls, moments, mask, **_):
        """Takes the sum of the images whose mask `[B]` is True."""
        return cls(total=moments, count=jnp.sum(mask, dtype=jnp.int32))


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Loss (nats) and accuracy (fraction), averaged over images.

    `single_from_model_output(loss=, logits=, labels=, mask=)` makes one from a batch:
    loss `[B]`, logits `[B, C]`, labels `[B]` int32, mask `[B]` bool or None.
    """

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Accuracy


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """`Metrics`, and averages over images.

    Attributes:
      indicators: `[B, I, L, H]` to `[I, L, H]`.
      moments: sums `[L, 2, H, K, K]` to their average, see `plain.second_moments`.
    """

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Accuracy
    indicators: ImageAverage.from_output("indicators")
    moments: MomentsAverage
