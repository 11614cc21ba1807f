"""What runs or builds models: ONNX Runtime and TensorRT, one file a backend."""
