"""From image files to batches: EXIF, faces, shards, streams, and the camera simulator."""
