"""Rows of records: functions that measure one thing and add it, shared by the stages."""
