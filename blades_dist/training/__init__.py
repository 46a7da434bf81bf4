"""Pretraining: the order of a step, engines, checkpoints, and the Ray Train worker around them."""
