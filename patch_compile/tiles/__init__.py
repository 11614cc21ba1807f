"""Tiles, masks and plans: numpy only, no files."""
