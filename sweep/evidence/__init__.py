"""Measured points, what the engine predicts for them, and how far off it is."""
