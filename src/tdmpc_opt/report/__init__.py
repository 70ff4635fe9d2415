"""Tables, plots and pages from results, without running anything; films, which run agents."""
