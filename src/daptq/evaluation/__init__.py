"""Closed-loop judgement of a policy: paired episodes, statistics and end-effector drift."""
