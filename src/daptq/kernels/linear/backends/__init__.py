"""Backends of the linear operations, one public file each."""
