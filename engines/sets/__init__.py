"""Engine sets: the engines of one stage over all batch sizes, and which of them run for n survivors."""
