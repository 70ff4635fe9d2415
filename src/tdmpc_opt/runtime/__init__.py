"""The agent as a robot runs it: numpy and an ONNX session, without torch."""
