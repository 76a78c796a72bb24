"""Benchmarks: commands that measure; each writes JSON with its environment."""
