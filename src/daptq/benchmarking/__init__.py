"""Latency and memory of control steps, against the best floating-point paths."""
