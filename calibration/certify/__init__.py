"""The mathematics of certification: risk tests, p-values, set metrics."""
