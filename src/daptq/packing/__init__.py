"""The on-disk formats of policies, and loading them back without a float copy of the whole model."""
