"""What a step costs the host: the device parts read nothing back, and the step once, or twice where lambda must move
in between; and whatever comes back not finite is refused."""

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from blades_dist.distributed import World
from blades_dist.training.cuda_graphs import RecordedPart, recorded
from blades_dist.training.device_part import Look
from blades_dist.training.guard import NonFinite
from blades_dist.training.sample import Sample
from blades_dist.training.step import BilevelStep
from blades_dist.training.torch_engine import PlainEngine
from tests.problems import LR, build_step, sample, small_model, train_config

ROUTES: dict[str, tuple[int, dict[str, Any]]] = {  # how often the host waits for the device in a step of it
    "plain": (1, {"weighting": "equal"}),
    "uncertainty": (1, {"weighting": "uncertainty"}),
    "exact": (2, {}),
    "exact, reuse": (1, {"reuse_gradient": True}),
    "exact, adamw": (2, {"lookahead": "adamw"}),
    "exact, reuse, adamw": (1, {"reuse_gradient": True, "lookahead": "adamw"}),
    "alternating": (2, {"route": "alternating"}),
    "alternating, reuse, adamw": (1, {"route": "alternating", "reuse_gradient": True, "lookahead": "adamw"}),
    "finite_difference": (2, {"route": "finite_difference"}),
    "finite_difference, reuse": (1, {"route": "finite_difference", "reuse_gradient": True}),
}


def on_device(device: str, clip: float, values: dict[str, Any]) -> tuple[BilevelStep, Sample, Sample | None]:
    config = train_config(clip_norm=clip)
    model = small_model().train()
    samples = [sample(0, stream, 4, World(), torch.float32) for stream in (0, 1)]
    moved = [Sample(part.images.to(device), part.labels.to(device), []) for part in samples]
    step = build_step(PlainEngine(model.to(device), config, World()), World(), config, **values)
    return step, moved[0], moved[1] if step.wants_validation(0) else None


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", ROUTES)
def test_the_device_parts_need_no_number_from_the_device(
    name: str, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's meta device tensors have no data: whatever reads one, or lets a shape depend on it, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know that device
    step, train, val = on_device("meta", clip, ROUTES[name][1])
    for _ in range(2):  # without AdamW's moments, and with them
        step.part.send(step.weights.value, LR)
        look = step.part.look([train], val)
        assert look.report.shape == ((3 * len(step.tasks) if val else len(step.tasks)) + 1,)
        if look.due:
            step.part.backward(look)
        step.engine.step(LR)
    with pytest.raises(RuntimeError, match="meta"):
        look.report.tolist()


READS = ("item", "tolist", "cpu", "numpy", "to", "nonzero", "__bool__", "__float__", "__int__", "__index__")


def counted(monkeypatch: pytest.MonkeyPatch, step: BilevelStep) -> list[str]:
    """Names of the reads of what the device parts give, in order, from now on."""
    found: list[str] = []
    given: list[Tensor] = []

    def spied(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Tensor, *arguments: Any, **options: Any) -> Any:
            if any(self is tensor for tensor in given):
                found.append(name)
            return method(self, *arguments, **options)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, spied(name, getattr(Tensor, name)))

    class Parts:
        def look(self, *arguments: Any) -> Look:
            look = step.part.look(*arguments)
            # A copy, as on a GPU reading it makes one: what the host does with that is no read of the device's.
            look = Look(look.report.clone(), look.due, look.forward)
            given.append(look.report)
            return look

        def backward(self, look: Look) -> Tensor:
            given.append(step.part.backward(look).clone())
            return given[-1]

    step._device = Parts()
    monkeypatch.setattr(Tensor, "cpu", spied("cpu", lambda tensor: tensor.clone()))
    return found


@pytest.mark.parametrize("name", ROUTES)
def test_how_often_the_host_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, values = ROUTES[name]
    step, train, val = on_device("cpu", 0.0, values)
    found = counted(monkeypatch, step)
    step.run(0, LR, [train], val)
    assert len(found) == waits, found


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lr": 2.0, "normalise": True}, "cannot be scaled to mean 1"),
        ({"weighting": "uncertainty", "lr": 1e9}, "overflowed"),
    ],
)
def test_task_weights_that_vanish_or_overflow_refuse_the_step_like_anything_else(
    values: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the optimiser's step, as NonFinite, and with nothing changed."""
    step, train, val = on_device("cpu", 0.0, values)
    before = {name: value.clone() for name, value in step.engine.module.state_dict().items()}
    weights = step.weights.state_dict()
    move = step.weights.step
    monkeypatch.setattr(step.weights, "step", lambda found, at: move(torch.ones_like(found), at))  # all fall to 0
    with pytest.raises(NonFinite, match=reason) as caught:
        step.run(0, LR, [train], val)
    assert caught.value.what == "task weights" and "no state was changed" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason  # Ray sends it between processes
    assert step.weights.state_dict() == weights
    assert all(torch.equal(value, before[name]) for name, value in step.engine.module.state_dict().items())


def test_graphs_are_refused_where_they_cannot_be_and_left_out_where_they_need_not_be() -> None:
    step, _, _ = on_device("cpu", 0.0, {})
    assert recorded(step.part, "auto") is step.part and recorded(step.part, "off") is step.part
    with pytest.raises(ValueError, match=r"train\.cuda_graphs: on is not possible here: the model is on the cpu"):
        recorded(step.part, "on")


class Recorder:
    """Stands for a graph and for what records it; a CPU computes while it records, and nothing when it replays."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.replayed = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def replay(self) -> None:
        self.replayed += 1

    def wait_stream(self, _: object) -> None: ...


@pytest.mark.parametrize("name", ["plain", "exact", "exact, reuse, adamw", "alternating"])
def test_what_is_recorded_is_what_a_step_goes_on_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the recording itself, which tests on a GPU have: the second step is recorded, and is like any."""
    for target in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, target, Recorder)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    # What stands for a replay computes nothing, so the second graph's lambda must be the one it was recorded with.
    values, ends = {**ROUTES[name][1], "lr": 1e-30}, []
    for record in (False, True):
        step, train, val = on_device("cpu", 1.0, values)
        if record:
            step._device = RecordedPart(step.part, required=True)
        for i in range(2):
            step.run(i, LR, [train], val)
        ends.append(torch.cat([value.detach().flatten() for value in step.engine.module.parameters()]))
        ends.append(step.weights.value)
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])
    assert isinstance(step._device, RecordedPart)
    (recording,) = step._device._recordings.values()
    graphs: list[Any] = [graph for graph in (recording.look_graph, recording.backward_graph) if graph is not None]
    assert len(graphs) == ROUTES[name][0] and all(graph.replayed == 1 for graph in graphs)
