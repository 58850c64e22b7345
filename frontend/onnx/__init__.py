"""ONNX files: what is in them (`file`), and their operators as functions on PyTorch tensors (`operators`)."""
