"""Comparing two engines of one network, tensor by tensor: where precision is lost, and whether decisions move."""
