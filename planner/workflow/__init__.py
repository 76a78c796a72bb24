"""Planning runs: their inputs, the search, their record."""
