"""Measurements on a GPU, in stages that survive what is missing; ``measure_all.sh`` runs them."""
