"""Scaling of the activations of quantized layers, one method per file."""
