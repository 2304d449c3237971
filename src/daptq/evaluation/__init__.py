"""Closed-loop judgement of a policy: paired episodes, statistics, end-effector drift, latency and the report."""
