"""Fidelity losses of the pretext tasks."""
