"""The identity of an engine: its key, the facts of its graph, and its description."""
