"""Benchmarks, one per file, behind the Gymnasium API. Importing this package imports no simulator."""
