"""Torch networks with exits: backbones, heads, shipped weights."""
