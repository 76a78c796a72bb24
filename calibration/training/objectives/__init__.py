"""Objectives of training: losses of each kind of answer, and how well a confidence ranks them."""
