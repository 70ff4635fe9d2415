"""Measurements of policies: scores, latency, planner search, and the result files."""
