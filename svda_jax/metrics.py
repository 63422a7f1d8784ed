"""Metrics as masked sums and counts, so that averages over a split are exact."""

import flax.struct
from clu import metrics


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Loss (nats) and accuracy (fraction), averaged over examples.

    `single_from_model_output(loss=, logits=, labels=, mask=)` makes one from a batch:
    loss `[B]`, logits `[B, C]`, labels `[B]` int32, mask `[B]` bool or None.
    """

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Accuracy
