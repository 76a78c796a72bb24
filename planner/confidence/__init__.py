"""Learned confidences of a plan: fitted on the samples for tuning, and taken where they save time (pure)."""
