"""Looking at a run: attention maps, figures, predictions, the report."""
