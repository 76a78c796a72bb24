"""Monitoring: running statistics and drift of the live stream."""
