"""Data: where samples come from and how they are split into parts."""
