"""Serving: ``python -m runtime.serve``: bundles behind the Open Inference Protocol, over HTTP and gRPC."""
