"""Decisions on frozen features: heads, calibration, and the bundle that carries both with the encoder."""
