"""The folder of a run (config, checkpoints, history, events), and its console."""
