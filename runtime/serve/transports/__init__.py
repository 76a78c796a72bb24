"""Transports: the ways in to a server: HTTP by Starlette and uvicorn, gRPC."""
