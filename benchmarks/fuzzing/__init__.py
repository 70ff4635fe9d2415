"""Hostile files: valid ones are made, changed, read and watched."""
