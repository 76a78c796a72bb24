"""Scheduling: which stage runs next over which rows, and which rows leave. Pure: no clock, no engine, no array.

``batch_steps`` moves one batch through its stages; ``machine`` shares the stages among the rows of many requests.
"""
