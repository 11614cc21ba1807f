"""Latencies of models, measured side by side."""
