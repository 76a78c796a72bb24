"""Hosting: requests that come one by one share the stages of a bundle, in this process and from an event loop."""
