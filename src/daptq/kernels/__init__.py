"""Low-bit operations: for each its schema, a plain reference, one file for each backend, and the choice between them."""
