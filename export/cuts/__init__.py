"""Cuts: separators of the dataflow, segments, stages, and the proof that they equal the whole."""
