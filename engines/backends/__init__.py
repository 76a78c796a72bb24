"""The table of backends, and the functions that use it: opening, building, devices."""
