"""Trained models whose scores are written anew: shorter, or as SVDA."""
