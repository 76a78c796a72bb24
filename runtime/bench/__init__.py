"""``python -m runtime.bench``: the full network against the bundle on held-out data."""
