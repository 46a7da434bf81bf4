"""The detector behind HTTP, on Ray Serve."""
