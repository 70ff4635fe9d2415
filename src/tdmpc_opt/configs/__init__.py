"""The options of every command, in frozen dataclasses that need no torch and no simulator."""
