"""The linear operation with packed integer weights and 8-bit activations; every public file is a backend.

All backends share the arithmetic of `_arithmetic.py` and differ only in how they multiply integers, so their results
are equal bit for bit, and which one is fastest decides nothing but the time.
"""
