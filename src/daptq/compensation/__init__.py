"""Compensation of the perception-to-action interface, one method per file, and how a compensating map folds into weights."""
