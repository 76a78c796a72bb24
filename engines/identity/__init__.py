"""What an engine was built for: its key, the facts of its graph, and its description."""
