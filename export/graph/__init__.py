"""ONNX graphs, emitted from config and safetensors headers: no weight is read, torch isn't needed.

Every graph's weights are external data inside the variant's own `.safetensors` files.
"""
