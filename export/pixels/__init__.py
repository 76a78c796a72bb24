"""Pixels: how an exported network wants its images, and a network that takes them as bytes."""
