"""A step's device parts as CUDA graphs: recorded once, then started as a whole.

A step of the full model is thousands of kernels, most of them shorter than Python takes to launch one. A graph holds
them all, with the memory they use, and one call starts it. What goes in is copied into tensors that stay (samples
here; lambda and alpha are in ``DevicePart``'s own), parameters, buffers and AdamW's moments are updated in place (so no
checkpoint may be loaded once a graph is recorded), and what comes out are tensors that stay. See "CUDA Graphs" in
torch's notes on CUDA semantics (whole-network capture).

The graphs of one kind of step (with or without an outer step, by the samples' shapes) are recorded when that kind comes
for the second time: the first has shown that it works. All share one memory pool, as no two ever run at the same time.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blades_dist.models.batchnorm import set_statistics, statistics
from blades_dist.models.dual import forget
from blades_dist.training.device_part import DevicePart, Look
from blades_dist.training.sample import Sample
from blades_dist.training.torch_engine import Accumulated, PlainEngine

WARM_UPS = 3  # runs on the recording stream before: libraries set themselves up, kernels are compiled and chosen

_log = logging.getLogger(__name__)


class Parts(Protocol):
    """The two device parts of a step, see ``DevicePart``."""

    def look(self, train: Sequence[Sample], val: Sample | None) -> Look: ...

    def backward(self, look: Look) -> Tensor: ...


def recorded(part: DevicePart, mode: str) -> Parts:
    """``part`` by way of graphs where ``mode`` (``train.cuda_graphs``) wants them and they are possible.

    Raises:
        ValueError: ``mode`` is on where they are not.
    """
    why_not = obstacle(part)
    if mode == "on" and why_not:
        raise ValueError(f"train.cuda_graphs: on is not possible here: {why_not}; use auto or off")
    if mode == "off" or why_not:
        return part
    return RecordedPart(part, required=mode == "on")


def obstacle(part: DevicePart) -> str | None:
    """Why this device part cannot be recorded."""
    if part.device.type != "cuda":
        return f"the model is on the {part.device.type}"
    if part.world.size > 1:
        return f"{part.world.size} workers exchange messages within a step"
    if not isinstance(part.engine, PlainEngine):
        return "DeepSpeed's hooks do not run in a graph (it steps with train.zero_stage 1 and 2)"
    if any(layer._compiled_call_impl is not None for layer in part.engine.module.modules()):
        return "the model is compiled"
    return None


@dataclass(frozen=True)
class Recording:
    """The graphs of one kind of step, and the tensors that they read and write each time."""

    train: list[Sample]
    val: Sample | None
    look_graph: "torch.cuda.CUDAGraph"
    look: Look
    looked: Accumulated  # what the engine holds after the first graph
    backward_graph: "torch.cuda.CUDAGraph | None" = None
    norm: Tensor | None = None
    pulled: Accumulated | None = None  # and after the second

    def load(self, train: Sequence[Sample], val: Sample | None) -> None:
        """Copies the samples to where the graphs read them."""
        for own, sample in zip([*self.train, *_some(self.val)], [*train, *_some(val)], strict=True):
            own.images.copy_(sample.images)
            own.labels.copy_(sample.labels)


class RecordedPart:
    """Both device parts; as written until their graphs are recorded, and from the first failure of that on."""

    def __init__(self, part: DevicePart, required: bool) -> None:
        assert isinstance(part.engine, PlainEngine)
        self._part, self._engine, self._required = part, part.engine, required
        self._stream, self._pool = torch.cuda.Stream(part.device), torch.cuda.graph_pool_handle()
        self._seen: set[object] = set()
        self._recordings: dict[object, Recording] = {}
        self._failed = False

    def look(self, train: Sequence[Sample], val: Sample | None) -> Look:
        key = (val is None, *(_kind(sample) for sample in [*train, *_some(val)]))
        if key not in self._recordings and self._due(key):
            self._try_to_record(key, train, val)
        found = self._recordings.get(key)
        if found is None:
            return self._part.look(train, val)
        found.load(train, val)
        found.look_graph.replay()
        self._engine.accumulated = found.looked
        return found.look

    def backward(self, look: Look) -> Tensor:
        for found in self._recordings.values():
            if found.look is look:
                assert found.backward_graph and found.pulled and found.norm is not None
                found.backward_graph.replay()
                self._engine.accumulated = found.pulled
                return found.norm
        return self._part.backward(look)

    def _due(self, key: object) -> bool:
        """Whether to record now: this kind was seen before, and AdamW has the moments that a look-ahead reads."""
        seen = key in self._seen
        self._seen.add(key)
        return seen and not self._failed and any(self._engine.optimizer.state.values())

    def _try_to_record(self, key: object, train: Sequence[Sample], val: Sample | None) -> None:
        before = statistics(self._engine.module)
        try:
            self._recordings[key] = self._record(train, val)
        except RuntimeError as error:  # what torch raises for an operation that cannot be recorded; also out of memory
            if self._required:
                raise
            self._failed = True
            reason = str(error).strip().splitlines()[0]
            _log.warning("CUDA graphs are off, steps run as written: recording one failed: %s", reason)
        finally:
            self._engine.discard()
            forget(self._engine.module)
            set_statistics(self._engine.module, before)  # warm-ups have moved them

    def _record(self, train: Sequence[Sample], val: Sample | None) -> Recording:
        own_train, own_val = [_copy(sample) for sample in train], None if val is None else _copy(val)
        with _without_autocast_cache():
            self._warm_up(own_train, own_val)
            first = torch.cuda.CUDAGraph()
            with self._recorder(first):
                look = self._part.look(own_train, own_val)
            looked = self._engine.accumulated
            self._engine.discard()
            if not look.due:
                return Recording(own_train, own_val, first, look, looked)
            second = torch.cuda.CUDAGraph()
            with self._recorder(second):
                norm = self._part.backward(look)
            # The activations have served: in the pool their memory is free again, and each replay rewrites it in turn.
            return Recording(
                own_train, own_val, first, Look(look.report, due=True), looked, second, norm, self._engine.accumulated
            )

    def _warm_up(self, train: list[Sample], val: Sample | None) -> None:
        torch.cuda.empty_cache()  # what steps as written have kept for themselves is of another stream
        current = torch.cuda.current_stream(self._part.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                look = self._part.look(train, val)
                if look.due:
                    self._engine.discard()
                    self._part.backward(look)
                self._engine.discard()
                forget(self._engine.module)
        current.wait_stream(self._stream)

    def _recorder(self, graph: "torch.cuda.CUDAGraph") -> "torch.cuda.graph":
        # thread_local: the thread that fetches batches may allocate and copy meanwhile.
        return torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")


def _copy(sample: Sample) -> Sample:
    return Sample(sample.images.clone(), sample.labels.clone(), [])


def _kind(sample: Sample) -> object:
    return sample.images.shape, sample.images.dtype, sample.labels.shape, sample.labels.dtype


def _some(sample: Sample | None) -> list[Sample]:
    return [] if sample is None else [sample]


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    # A cached cast would be a tensor of one graph's that another, or a step as written, goes on to use.
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
