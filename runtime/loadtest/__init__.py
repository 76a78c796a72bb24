"""Load test: a running host under requests that do not wait for its answers."""
