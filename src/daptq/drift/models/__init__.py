"""Drift models, one per file."""
