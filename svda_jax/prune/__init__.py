"""Pruning: a trained model with fewer directions in its scores."""
