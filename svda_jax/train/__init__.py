"""Training: the loop, its compiled steps, the optimizer, metrics."""
