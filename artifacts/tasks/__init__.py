"""Tasks: what a network's answers mean, one module per task."""
