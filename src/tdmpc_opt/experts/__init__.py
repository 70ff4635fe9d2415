"""Teachers of single tasks: reinforcement learning by a library, planning in the simulator."""
