"""Sweeps over tolerances."""
