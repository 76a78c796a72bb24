"""The host device, the fake engine, and the checks of host buffers."""
