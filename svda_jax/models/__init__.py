"""The Vision Transformer and its attentions."""
