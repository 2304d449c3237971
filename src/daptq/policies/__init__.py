"""VLA families, one per file; `_base` holds the contract that every family fulfils, `_conformance` its public checks.

Importing this package imports neither torch nor any family: the catalog loads a family on demand.
"""
