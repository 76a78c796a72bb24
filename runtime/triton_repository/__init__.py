"""Triton: a bundle as a model of a Triton Inference Server, run by its Python backend."""
