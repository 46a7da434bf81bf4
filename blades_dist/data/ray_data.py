"""Ray Data as ingest and feature extraction use it."""

import logging

from ray.data import DataContext

from blades_dist.ray_private import mute_data_progress


def quiet_ray_data() -> DataContext:
    """A copy of Ray Data's context in which it prints nothing by itself; this package reports progress."""
    context = DataContext.get_current().copy()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    mute_data_progress()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context
