"""Calibration data: one source per file, the contract of a source in `_base`, and what is observed while it runs."""
