"""Calibration data: one source per file, the contract of a source in `contract`, and what is observed while it runs."""
