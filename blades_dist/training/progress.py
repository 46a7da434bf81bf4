"""What a person sees of a run while it trains, and how fast it was: log lines, metrics, ``speed.json``."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from blades_dist.bilevel.build import TaskWeights
from blades_dist.files import write_atomically
from blades_dist.training.loggers import MetricLogger, Scalars
from blades_dist.training.prefetch import Waits
from blades_dist.training.step import StepResult

SPEED = "speed.json"  # in the run folder: since the run's last start


class Reporter:
    """Tells every ``every``-th step, to the log and to ``loggers``; only the rank that reports has one."""

    def __init__(
        self,
        folder: Path,
        every: int,
        first: int,
        total: int,
        images_a_step: int,
        proxy: int,
        loggers: Sequence[MetricLogger] = (),
    ) -> None:
        self.folder, self.every, self.total = folder, every, total
        self.images_a_step, self.proxy = images_a_step, proxy
        self._loggers = loggers
        self._begin = self._mark = time.monotonic()
        self._first = self._marked = first
        self._waits = Waits()
        self._val: float | None = None

    def step(self, step: int, epoch: int, lr: float, waits: Waits, result: StepResult, weights: TaskWeights) -> None:
        """Call after 1-based ``step``; ``waits`` are those for data since the start."""
        if result.val_losses is not None:
            self._val = float(result.val_losses[self.proxy])
        if step % self.every and step != self.total:
            return
        now = time.monotonic()
        seconds = max(now - self._mark - (waits.start - self._waits.start), 1e-9)
        rate = (step - self._marked) * self.images_a_step / seconds
        share = (waits.later - self._waits.later) / seconds
        left = (now - self._begin - waits.start) / (step - self._first) * (self.total - step)
        losses = dict(zip(weights.names, result.train_losses.tolist(), strict=True))
        val = "" if self._val is None else f" | val {self._val:.4f}"
        say(
            f"step {step}/{self.total} | epoch {epoch + 1} | {rate:.0f} images/s | left {_clock(left)} | "
            f"sum {sum(losses.values()):.3f} | coarse {losses['face_coarse']:.4f}{val} | "
            f"lambda {_brief(weights)} | data wait {share:.0%}"
        )
        speed = {"speed/images_per_second": rate, "speed/data_wait_share": share}
        self.log(step, {"train/lr": lr} | speed | _scalars(losses, result, weights))
        self._mark, self._marked, self._waits = now, step, waits

    def finish(self, step: int, waits: Waits) -> None:
        """Says and writes how fast the run was since its start, which the streams' first batches are no part of."""
        steps = step - self._first
        if not steps:
            return
        seconds = max(time.monotonic() - self._begin - waits.start, 1e-9)
        speed = {
            "steps": steps,
            "seconds": seconds,
            "images_per_second": steps * self.images_a_step / seconds,
            "data_wait_seconds": waits.later,
            "data_wait_share": waits.later / seconds,
            "first_batch_seconds": waits.start,
        }
        write_atomically(self.folder / SPEED, json.dumps(speed, indent=1) + "\n")
        say(
            f"{steps} steps in {_clock(seconds)} | {speed['images_per_second']:.0f} images/s | "
            f"data wait {speed['data_wait_share']:.1%} of it, and {waits.start:.1f} s for the first batches before"
        )

    def log(self, step: int, values: Scalars) -> None:
        """Hands values after 1-based ``step`` to every logger."""
        for logger in self._loggers:
            logger.log(step, values)

    def close(self) -> None:
        """Closes the loggers."""
        with ExitStack() as open_ends:
            for logger in self._loggers:
                open_ends.callback(logger.close)


def _scalars(losses: dict[str, float], result: StepResult, weights: TaskWeights) -> dict[str, float]:
    """What one step says of each task, and the gradient's norm."""
    scalars = {f"loss/{name}": value for name, value in losses.items()}
    scalars |= {f"lambda/{name}": value for name, value in weights.as_dict().items()}
    scalars["train/gradient_norm"] = result.gradient_norm
    if result.val_losses is not None and result.hypergradient is not None:
        values = zip(weights.names, result.val_losses.tolist(), result.hypergradient.tolist(), strict=True)
        for name, val, hyper in values:
            scalars |= {f"val/{name}": val, f"hypergradient/{name}": hyper}
    return scalars


def say(line: str) -> None:
    """One line to the log. Not ``print``: inside its workers Ray Train replaces that, and lines come out twice."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _brief(weights: TaskWeights) -> str:
    """The two largest and the smallest weight."""
    ranked = sorted(weights.as_dict().items(), key=lambda item: -item[1])
    shown = ranked[:2] + ranked[-1:]
    return " ".join(f"{name} {value:.2f}" for name, value in shown)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
