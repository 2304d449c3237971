"""Whether every layer executed what the checkpoint's plan says."""
