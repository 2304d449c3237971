"""Ways to score layers, one per file."""
