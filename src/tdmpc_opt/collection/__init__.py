"""Experts and the datasets that policies leave behind."""
