"""Portable files: a committed plan as one ONNX graph, proven against the runtime."""
