"""Scores of a policy on real tasks, their intervals, and the result files that hold them."""
