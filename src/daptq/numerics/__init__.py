"""Pure tensor functions: integer grids, scales, bit packing, streaming moments; none knows of policies or layers."""
