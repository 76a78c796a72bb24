"""The model folder of a run: what it holds and how it is written."""
