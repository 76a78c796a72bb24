"""Scheduling: which stage runs next over which rows. Pure: no clock, no engine, no array."""
