"""The paper's comparison, its studies and figures."""
