"""From a torch network to ONNX graphs and a model folder."""
