"""Rounding of float weights to integers, one method per file."""
