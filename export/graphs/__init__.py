"""ONNX graphs: files, loading, dataflow, batch axis, probing, confidence."""
