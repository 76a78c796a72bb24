"""Scouting: what exits would save, from cheap probes on a few hundred samples, before anything is trained."""
