"""Vision Transformers with SVDA attention, trained and looked into, in JAX."""


class UserError(ValueError):
    """A mistake of the user's; `svda_jax.main` prints it as one line and exits."""
