"""Bit allocation: which layer gets how many bits, one allocator per file, and the bit plan that they return."""
