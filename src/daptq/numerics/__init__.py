"""Pure tensor functions: integer grids, scales, bit packing, streaming moments. They know nothing of policies and layers."""
