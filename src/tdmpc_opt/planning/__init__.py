"""MPPI planning in latent space, its presets, and the policy-only mode."""
