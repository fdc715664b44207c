"""Files: written whole, read without running code; ONNX."""
