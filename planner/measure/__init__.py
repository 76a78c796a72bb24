"""Measurement of engines and of the host's own time."""
