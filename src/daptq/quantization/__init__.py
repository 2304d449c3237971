"""The quantization pipeline: a recipe, its stages, and the working folder that they fill."""
