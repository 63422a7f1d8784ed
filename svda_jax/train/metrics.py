"""Metrics as masked sums and counts, so that averages over a split are exact."""

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics

# Classes up to which each pair is counted: 4 MB on a device then, and in a history.
MAX_CONFUSED = 1000


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
class Confusion(metrics.Metric):
    """Images by true and predicted class.

    Attributes:
      counts: int32; `[C, C]` up to `MAX_CONFUSED` classes, else `[C, 2]`, how many of a
        class are predicted wrongly and rightly.
    """

    counts: jax.Array

    @classmethod
    def from_model_output(cls, logits, labels, mask, **_):
        """Counts the images whose mask `[B]` is True: logits `[B, C]`, labels `[B]`."""
        num_classes = logits.shape[-1]
        columns, num_columns = jnp.argmax(logits, axis=-1), num_classes
        if num_classes > MAX_CONFUSED:
            columns, num_columns = (columns == labels).astype(jnp.int32), 2
        # A product, exact up to 2^24 images a batch: accelerators scatter one by one.
        rows = jax.nn.one_hot(labels, num_classes) * mask[:, None]
        counts = rows.T @ jax.nn.one_hot(columns, num_columns)
        return cls(counts.astype(jnp.int32))

    def merge(self, other):
        """The counts of both."""
        return type(self)(self.counts + other.counts)

    def compute(self):
        """The counts."""
        return self.counts


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
    """`Metrics`, averages over images, and counts.

    Attributes:
      indicators: `[B, I, L, H]` to `[I, L, H]`.
      moments: sums `[L, 2, H, K, K]` to their average, see `plain.second_moments`.
      confusion: counts by class.
    """

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Accuracy
    indicators: ImageAverage.from_output("indicators")
    moments: MomentsAverage
    confusion: Confusion
