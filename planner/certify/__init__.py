"""Certified plans: evidence, the order of the tests, tolerances below the one asked for."""
