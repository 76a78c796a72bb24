"""Open Inference Protocol: bytes to arrays and back, interfaces and error codes, without a transport."""
