"""A stack of pre-norm transformer blocks, with low-bit layers, as one operation."""
