"""The page where an agent plays: its files, the agents in it, and the server for both."""
