"""Compensation of the perception-to-action interface, one method per file, and the folding of a map into weights."""
