"""Training of exit heads and of whole networks; the only part of the room that needs torch."""
