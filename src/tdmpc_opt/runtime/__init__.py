"""The agent as a robot runs it: numpy, and an ONNX session where the file asks for one."""

from tdmpc_opt.runtime.agent import Agent, load

__all__ = ["Agent", "load"]
