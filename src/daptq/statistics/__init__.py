"""Intervals, paired tests and sequential tests; pure functions of numbers."""
