"""Published checkpoints read as detectors of ours."""
