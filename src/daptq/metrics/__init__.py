"""Metrics of recorded episodes: drift, motion, success."""
