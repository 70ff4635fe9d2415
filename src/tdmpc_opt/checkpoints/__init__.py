"""Weights on disk: this project's safetensors files, and every public layout, read safely."""
