"""Drift models, one per file, and the drift profile: what calibration says about a policy before it is quantized."""
