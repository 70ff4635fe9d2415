"""Latency, memory and size of any policy, of a checkpoint or exported."""
