"""Emoji as their vendors draw them: a data set of about a hundred classes."""
