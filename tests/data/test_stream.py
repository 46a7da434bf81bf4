"""The order of an epoch, and streams that follow it: any number of workers, interrupted anywhere."""

import random
from contextlib import closing
from itertools import accumulate, count, islice
from pathlib import Path

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from blades_dist.config import IngestConfig, StreamConfig
from blades_dist.data.ingest import ingest
from blades_dist.data.order import EpochOrder, Position, after, chunks, global_batches
from blades_dist.data.read import read_split
from blades_dist.data.records import read_manifest
from blades_dist.data.stream import stream
from blades_dist.tasks import TAGS

SIZES = [16, 16, 7, 16, 16, 16, 1, 16, 16, 5]
TOTAL = sum(SIZES)
Place = tuple[int, int]
START = Position()


def places(
    start: Position, rank: int, world: int, batches: int, batch: int = 4, per_chunk: int = 3, seed: int = 5
) -> list[tuple[list[Place], Position]]:
    """What one worker reads: (group, row) of every batch, and the position after it."""
    plan = chunks(SIZES, 3, seed, start, batch_size=batch, rank=rank, world_size=world, batches_per_chunk=per_chunk)
    result: list[tuple[list[Place], Position]] = []
    for chunk in plan:
        position = chunk.first
        rows = list(zip(chunk.group.tolist(), chunk.row.tolist(), strict=True))
        for i in range(chunk.batches):
            position = after(position, batch * world, TOTAL)
            result.append((rows[i * batch : (i + 1) * batch], position))
            if len(result) == batches:
                return result
    raise AssertionError("a plan has no end")


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    everything = {(group, row) for group, size in enumerate(SIZES) for row in range(size)}
    orders = []
    for epoch in (0, 1):
        group, row = EpochOrder(SIZES, 3, 5, epoch).stretch(0, TOTAL)
        orders.append(list(zip(group.tolist(), row.tolist(), strict=True)))
        assert len(orders[-1]) == TOTAL and set(orders[-1]) == everything
    other = EpochOrder(SIZES, 3, 6, 0).stretch(0, TOTAL)
    assert orders[0] != orders[1] and orders[0] != list(zip(*map(np.ndarray.tolist, other), strict=True))


def test_the_order_is_fixed_for_ever() -> None:
    """A run resumed under another version must go on in the same order: these numbers must not change."""
    group, row = EpochOrder([4, 4, 4], 2, 7, 1).stretch(0, 12)
    assert (group * 10 + row).tolist() == [3, 21, 22, 2, 20, 1, 0, 23, 13, 11, 12, 10]


@given(st.integers(0, TOTAL), st.integers(0, TOTAL), st.integers(1, 12))
def test_any_stretch_is_part_of_the_whole(a: int, b: int, window: int) -> None:
    order = EpochOrder(SIZES, window, 1, 2)
    whole, part = order.stretch(0, TOTAL), order.stretch(min(a, b), max(a, b))
    assert all((w[min(a, b) : max(a, b)] == p).all() for w, p in zip(whole, part, strict=True))


@settings(max_examples=120)
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=8
    ),
    seed=st.integers(0, 9),
)
def test_interrupted_anywhere_and_resumed_with_another_number_every_epoch_has_each_row_once(
    runs: list[tuple[int, int, int, int]], seed: int
) -> None:
    """A run is (workers, rows of each a batch, batches a chunk, steps until it is interrupted)."""
    position = Position()
    consumed: list[Place] = []
    for world, batch, per_chunk, steps in [*runs, (1, 4, 3, 2 * TOTAL // 4)]:
        part, position = joined(position, world, steps, batch, per_chunk, seed)
        consumed += part
        assert position == after(Position(), len(consumed), TOTAL)
    assert consumed == whole(seed, 1 + len(consumed) // TOTAL)[: len(consumed)]
    everything = {(group, row) for group, size in enumerate(SIZES) for row in range(size)}
    for epoch in range(len(consumed) // TOTAL):
        ids = consumed[epoch * TOTAL : (epoch + 1) * TOTAL]
        assert len(ids) == TOTAL and set(ids) == everything


@pytest.mark.parametrize("world", [1, 2, 3])
def test_at_an_equal_number_of_workers_the_sequence_of_each_is_identical(world: int) -> None:
    rng = random.Random(world)
    for rank in range(world):
        alone = places(Position(), rank, world, 60)
        for _ in range(20):
            stop = rng.randrange(1, 40)
            resumed = places(alone[stop - 1][1], rank, world, 60 - stop, per_chunk=rng.randrange(1, 6))
            assert alone[:stop] + resumed == alone


def whole(seed: int, epochs: int) -> list[Place]:
    """The orders of some epochs, one after another."""
    orders = [EpochOrder(SIZES, 3, seed, epoch).stretch(0, TOTAL) for epoch in range(epochs)]
    return [place for order in orders for place in zip(*map(np.ndarray.tolist, order), strict=True)]


def joined(
    start: Position, world: int, steps: int, batch: int, per_chunk: int, seed: int = 5
) -> tuple[list[Place], Position]:
    """What all workers read in some steps, in the order of the epochs, and the position after them."""
    if steps == 0:
        return [], start
    streams = [places(start, rank, world, steps, batch, per_chunk, seed) for rank in range(world)]
    ends = {stream[-1][1] for stream in streams}
    assert len(ends) == 1
    return [place for step in zip(*streams, strict=True) for rows, _ in step for place in rows], ends.pop()


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next() -> None:
    plan = chunks(SIZES, 3, 5, Position(0, TOTAL - 2), batch_size=4, rank=0, world_size=1, batches_per_chunk=1)
    first, second = islice(plan, 2)
    assert first.epoch.tolist() == [0, 0, 1, 1] and second.first == Position(1, 2)
    assert places(Position(0, TOTAL), 0, 1, 2) == places(Position(1, 0), 0, 1, 2)
    with pytest.raises(ValueError, match="not possible"):  # a row would be in a batch more than once
        places(Position(), 0, 1, 1, batch=TOTAL + 1)


def test_consumed_row_groups_are_not_read_again() -> None:
    start = Position(0, 2 * 48)
    order = EpochOrder([16] * 12, 3, 5, 0)
    used = set(order.stretch(0, start.rows)[0].tolist())
    plan = chunks([16] * 12, 3, 5, start, batch_size=16, rank=0, world_size=1, batches_per_chunk=2)
    rest = [chunk for chunk in islice(plan, 3) if chunk.first.epoch == 0]
    assert len(used) == 6 and all(used.isdisjoint(chunk.group.tolist()) for chunk in rest)


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond its epoch"):
        places(Position(0, TOTAL + 1), 0, 1, 1)
    with pytest.raises(ValueError, match="not possible"):
        places(Position(), 2, 2, 1)
    with pytest.raises(ValueError, match="negative"):
        Position(0, -1)


@pytest.fixture(scope="module")
def shards(ray_cluster: None, collection: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("streamed")
    splits = {"train": 0.9, "val": 0.1}
    ingest(IngestConfig(source=collection[0], output=output, rows_per_group=8, splits=splits))
    return output


def settings_of(shards: Path) -> StreamConfig:
    return StreamConfig(shards=shards, image_size=48, window_groups=3)


def ids_of(
    shards: Path, steps: int, start: Position = START, rank: int = 0, world: int = 1, batch: int = 8
) -> list[list[str]]:
    batches = stream(
        shards, "train", settings_of(shards), batch_size=batch, rank=rank, world_size=world, seed=3, start=start
    )
    with closing(batches):
        return [batch["ids"] for batch, _ in islice(batches, steps)]


@pytest.mark.ray
def test_stream_equals_the_stored_rows(shards: Path) -> None:
    stored = {}
    for part in read_split(shards, "train", 48):
        for i, name in enumerate(part["ids"]):
            stored[name] = (part["images"][i], part["landmarks"][i], part["labels"][i])
    steps = -(-len(stored) // 8)
    batches = stream(shards, "train", settings_of(shards), batch_size=8, rank=0, world_size=1, seed=3, start=Position())
    seen: list[str] = []
    for batch, position in islice(batches, steps):
        assert batch["images"].shape == (8, 3, 48, 48) and batch["images"].dtype == np.uint8
        assert batch["labels"].shape == (8, len(TAGS)) and batch["labels"].dtype == np.int64
        assert batch["landmarks"].shape == (8, 5, 2) and batch["landmarks"].dtype == np.float32
        assert batch["images"].flags.writeable
        for i, name in enumerate(batch["ids"]):
            pixels, landmarks, labels = stored[name]
            assert (batch["images"][i] == pixels).all() and (batch["labels"][i] == labels).all()
            assert (batch["landmarks"][i] == landmarks).all()
        seen += batch["ids"]
        assert position == after(Position(), len(seen), len(stored))
    assert set(seen[: len(stored)]) == set(stored), "an epoch is every row of the split, each once"
    following, _ = next(batches)
    assert following["ids"] not in [seen[i : i + 8] for i in range(0, len(seen), 8)]


@pytest.mark.ray
def test_every_epoch_is_complete_with_1_2_and_3_workers_interrupted_and_resumed(shards: Path) -> None:
    total = global_batches(read_manifest(shards), "train", 1)
    wanted = total + total // 4  # beyond the end of the first epoch
    alone = [name for ids in ids_of(shards, 2 * total // 5 + 5, batch=5) for name in ids]
    assert len(set(alone[:total])) == len(set(alone[total : 2 * total])) == total
    rng = random.Random(7)
    consumed: list[str] = []
    for world in accumulate(count(), lambda last, _: rng.choice([n for n in (1, 2, 3) if n != last]), initial=2):
        if len(consumed) >= wanted:
            break
        start, steps = after(START, len(consumed), total), rng.randrange(1, 9)
        shares = [ids_of(shards, steps, start, rank, world, batch=5) for rank in range(world)]
        consumed += [name for step in zip(*shares, strict=True) for ids in step for name in ids]
    assert consumed[:wanted] == alone[:wanted]


@pytest.mark.ray
def test_workers_share_one_sequence_and_resume_in_it(shards: Path) -> None:
    alone = ids_of(shards, 8)
    halves = [ids_of(shards, 4, rank=rank, world=2) for rank in range(2)]
    assert [ids for pair in zip(*halves, strict=True) for ids in pair] == alone
    assert ids_of(shards, 5, start=Position(0, 24)) == alone[3:]
    assert ids_of(shards, 2, start=Position(0, 32), rank=1, world=2) == [alone[5], alone[7]]


@pytest.mark.ray
def test_streams_run_where_workers_hold_every_cpu(shards: Path) -> None:
    @ray.remote
    class Worker:
        def read(self) -> int:
            return sum(len(ids) for ids in ids_of(shards, 6))

    worker = Worker.options(num_cpus=ray.cluster_resources()["CPU"]).remote()  # type: ignore[attr-defined]
    try:
        assert ray.get(worker.read.remote(), timeout=600) == 48
    finally:
        ray.kill(worker)


@pytest.mark.ray
def test_too_few_rows_are_told(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"val.*fewer than one global batch of 4000"):
        stream(shards, "val", settings_of(shards), batch_size=1000, rank=0, world_size=4, seed=0, start=Position())


@pytest.mark.ray
def test_read_split(shards: Path) -> None:
    rows = read_manifest(shards).rows["train"]
    sizes = [len(batch["ids"]) for batch in read_split(shards, "train", 32, batch_size=50)]
    assert sum(sizes) == rows and all(size == 50 for size in sizes[:-1])
    batch = next(read_split(shards, "train", 32, limit=5))
    assert batch["images"].shape == (5, 3, 32, 32) and set(batch["sources"]) <= {"a_trip", "b_party"}
    assert batch["paths"][0].endswith(".jpg")
    # The left eye lies at pixel (30, 30) of a 91-pixel crop.
    assert np.allclose(batch["landmarks"][0, 0], 30.5 * 32 / 91 - 0.5, atol=1e-4)
    with pytest.raises(ValueError, match="no rows"):
        next(read_split(shards, "test", 32))
