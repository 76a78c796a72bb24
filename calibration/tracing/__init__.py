"""Traces: what every exit would answer for every sample."""
