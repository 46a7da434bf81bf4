"""Image tower, text tower and their joint embedding."""
