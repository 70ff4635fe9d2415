"""Tables and plots drawn from results, without running anything."""
