"""The networks of TD-MPC2 and the two-hot regression of reward and value."""
