"""Engine sets: the engines of a stage over all batch sizes, and the covers that choose among them for n survivors."""
