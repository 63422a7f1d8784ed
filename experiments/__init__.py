"""What reproduces the paper's comparison, and what was measured."""
