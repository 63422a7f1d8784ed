"""Measurements of cost, a table a command."""
