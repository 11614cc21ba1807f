"""Making masks with PyTorch, and exporting the model they are for."""
