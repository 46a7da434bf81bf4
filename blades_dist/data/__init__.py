"""From image files to batches: EXIF, faces, shards and streams."""
