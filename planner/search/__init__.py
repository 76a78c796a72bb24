"""Searches for exits and thresholds."""
