"""Low-bit operations: for each its schema, a plain reference, one file per backend, and the choice between them."""
