"""A chain of stages as one CUDA graph: the kernels that count rows on the GPU, and the graph of them."""
