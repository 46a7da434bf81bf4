"""What the driver hands to Ray Train.

Light, since Ray loads it in the driver and in its controller too, which train nothing: models and statistics are
imported only where they run.
"""

from typing import Any

STOPPED = "stopped.json"  # in the run folder, when the guard ended the run


def pretrain_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker of a group; see ``worker.train_worker``."""
    from blades_dist.training.worker import train_worker

    train_worker(settings)
