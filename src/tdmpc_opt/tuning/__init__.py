"""Planner budgets: what a search of them finds, and the presets that come of it."""
