"""Precision passes over a network before it is cut."""
