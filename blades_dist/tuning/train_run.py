"""A Ray Train run inside a Tune trial: its validation results as they come, and an end that leaves no process."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

from blades_dist.config import PretrainConfig
from blades_dist.ray_private import abort_training
from blades_dist.training import provenance
from blades_dist.training.launch import build_trainer
from blades_dist.training.stopping import StopSignal

METRIC = "coarse_auc"
_POLL_SECONDS = 0.5
_END_SECONDS = 60.0  # for a run to be ended in good order


class ValidationReports(UserCallback):
    """Passes validation results to the trial, each with the handle of Train's controller, in which this runs.

    Not Ray's ``TuneReportCallback``: that one puts every report, those without the metric too, into a queue for one,
    and the controller waits for room there. A trial that was stopped takes nothing out any more, and its controller
    could then not be ended.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: Sequence[dict[str, Any]], checkpoint: Any) -> None:
        found = next((own for own in metrics if METRIC in own), None)
        if found is not None:
            self._queue.put((ray.get_runtime_context().current_actor, dict(found)))


class TrainRun:
    """A run in a thread; ``reports`` yields its validation results, ``end`` ends it early."""

    def __init__(self, config: PretrainConfig) -> None:
        folder = config.storage / config.name
        folder.mkdir(parents=True, exist_ok=True)
        provenance.write(config, folder)
        self._queue = Queue(actor_options={"num_cpus": 0})
        self._stop_signal = StopSignal.remote()  # type: ignore[attr-defined]
        self._controller: Any = None
        self._error: BaseException | None = None
        self._ending = False
        trainer = build_trainer(config, [ValidationReports(self._queue)], self._stop_signal)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="trainer", daemon=True)
        self._thread.start()

    def reports(self) -> Iterator[dict[str, Any]]:
        """Metrics of each validation, until the run has ended.

        Raises:
            TrainingFailedError: the run has failed.
        """
        running = True
        while running:
            running = self._thread.is_alive()  # asked first, so that what was put before its end is still read
            with contextlib.suppress(Empty):
                while True:
                    self._controller, metrics = self._queue.get(timeout=_POLL_SECONDS if running else 0.01)
                    yield metrics
        if self._error is not None and not self._ending:
            raise self._error

    def end(self) -> None:
        """Ends the run, with its workers and their placement group, if it has not ended."""
        self._ending = True
        if self._thread.is_alive():
            if self._controller is not None:
                with contextlib.suppress(RayError):
                    abort_training(self._controller, _END_SECONDS)
            else:
                self._stop_signal.set.remote()
            self._thread.join(_END_SECONDS)
        with contextlib.suppress(RayError):
            self._queue.shutdown(force=True)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # for whoever reads the reports
            self._error = error
