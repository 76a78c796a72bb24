"""Simulation: the scheduler of the host with a simulated device, before anything is deployed."""
