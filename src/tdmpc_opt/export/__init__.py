"""An agent as files for engines that need no torch: graphs, facts about them, the check."""
