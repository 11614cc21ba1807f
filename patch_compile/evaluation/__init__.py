"""How well a model does: perplexity and zero-shot tasks, of torch and ONNX models alike."""
