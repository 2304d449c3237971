"""Perception-to-action interfaces: where a representation is read, and which maps of it fold into weights."""
