"""The table of backends, and what looks a backend up in it: opening, building, devices."""
