"""Variants: one network in several precisions on several engines, and the choice of the fastest."""
