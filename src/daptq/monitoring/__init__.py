"""What runs with a policy on a robot: the drift monitor, and the refresh of interface statistics."""
