"""ONNX Runtime: sessions, and graphs that are packed ahead of time."""
