"""Validation of planning methods on redrawn calibration sets."""
