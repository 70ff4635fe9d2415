"""The TD-MPC2 objective, the distillation terms and the loop that steps them."""
