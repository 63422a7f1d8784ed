"""Data sets: splits, decoding, batches, importers, augmentation."""
