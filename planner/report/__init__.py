"""The report of a planning run."""
