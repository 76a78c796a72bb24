"""Bundles behind Ray Serve: replicas of the very application of ``runtime.serve``, over HTTP and gRPC.

    from ray import serve
    from runtime.ray_app import Scaling, build, start

    start(grpc_port=8001)
    serve.run(build({"digits": "/bundles/digits"}, scaling=Scaling(replicas=2)))

Needs the extra ``ray``; nothing of Ray is imported before it is used.
"""

from __future__ import annotations

from runtime.ray_app.application import Scaling, build, start

__all__ = ["Scaling", "build", "start"]
