"""The ONNX Runtime backends, on the CPU and on CUDA."""
