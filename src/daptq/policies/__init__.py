"""VLA families, one per file; `contract` holds what every family fulfils, `conformance` its public checks.

Importing this package imports neither torch nor any family: the catalog loads a family on demand.
"""
