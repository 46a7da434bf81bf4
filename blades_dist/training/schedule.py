"""Learning-rate schedule as a function of the step, so that resuming needs no scheduler state."""

import math

from blades_dist.config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """alpha of 0-based ``step``: linear warm-up, then cosine to zero over the run, or constant."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(total_steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))
