"""Environments of the 30 MT30 tasks on MuJoCo physics."""
