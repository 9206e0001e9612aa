"""Running what was exported: onnxruntime, numpy, pillow, tokenizers. Neither torch nor onnx is needed here."""
