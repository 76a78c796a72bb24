"""Confidences: how sure a network is of an answer, computed in its graph."""
