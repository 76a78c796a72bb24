"""The CUDA device: driver, context, buffers, kernels, launches, graphs."""
