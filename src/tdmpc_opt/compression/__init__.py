"""Smaller files of the same agent."""
