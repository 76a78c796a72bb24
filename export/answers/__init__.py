"""Answers: small forms of what a network says, made in its graph."""
