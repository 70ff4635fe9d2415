"""Agents and everything else that drives a task: sources of policies, rollout, workers."""
