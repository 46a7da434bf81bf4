"""BLADES-dist: detect AI-generated faces from real photographs alone, at any scale."""

__version__ = "0.1.0"
