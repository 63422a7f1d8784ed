"""Vision Transformers with SVDA attention, trained and looked into, in JAX."""

__version__ = "0.1.0"


class UserError(ValueError):
    """A mistake of the user's; the command line prints it as one line and exits."""
