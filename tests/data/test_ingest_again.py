"""Ingest killed, resumed, damaged, extended, merged."""

import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from blades_dist.config import IngestConfig
from blades_dist.data import shards as shards_module
from blades_dist.data.ingest import ingest
from blades_dist.data.records import MANIFEST, QUARANTINE, Manifest, read_manifest
from blades_dist.data.shards import publish, verify

pytestmark = pytest.mark.ray

JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"
Collection = tuple[Path, dict[str, str]]
OPTIONS: dict[str, Any] = {"rows_per_group": 16, "shard_mebibytes": 1}


def config(source: object, output: Path, **options: Any) -> IngestConfig:
    return IngestConfig.model_validate({"source": source, "output": output} | OPTIONS | options)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for shard in read_manifest(folder).shards for row in pq.read_table(folder / shard.name).to_pylist()]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture(scope="module")
def ingested(
    ray_cluster: None, collection: Collection, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    output = tmp_path_factory.mktemp("whole")
    return output, ingest(config(collection[0], output))


def run_job(address: str, arguments: list[str]) -> None:
    os.environ["RAY_ADDRESS"] = address
    sys.argv = [str(JOB), *arguments]
    runpy.run_path(str(JOB), run_name="__main__")


@pytest.fixture(scope="module")
def start(ray_cluster: None) -> Callable[[Path, Path], "multiprocessing.context.ForkServerProcess"]:
    """Starts the job in a process of its own, on the cluster of the tests: a fork of one that has the libraries, since
    importing them costs more than the ingest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["blades_dist.data.ingest"])
    address = ray.get_runtime_context().gcs_address

    def started(source: Path, output: Path) -> "multiprocessing.context.ForkServerProcess":
        values = {"source": source, "output": output, **OPTIONS}
        job = context.Process(target=run_job, args=(address, [f"{key}={value}" for key, value in values.items()]))
        job.start()
        return job

    return started


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_as_if_undisturbed(
    ingested: tuple[Path, Manifest],
    collection: Collection,
    tmp_path: Path,
    start: Callable[[Path, Path], "multiprocessing.context.ForkServerProcess"],
) -> None:
    output, moments = tmp_path / "killed", random.Random(4)
    kills = 0
    while kills < 10:
        begun = output / ".building"
        shutil.rmtree(output, ignore_errors=True) if (output / MANIFEST).exists() else None
        job = start(collection[0], output)
        while not begun.exists() and job.is_alive():  # importing and connecting are no moments of an ingest
            time.sleep(0.01)
        job.join(moments.uniform(0, 3))
        if job.is_alive():
            job.kill()
            kills += 1
        job.join()
        assert job.exitcode in (0, -signal.SIGKILL)
    job = start(collection[0], output)
    job.join()
    assert job.exitcode == 0
    assert read_manifest(output).digest() == ingested[1].digest()
    assert rows_of(output) == rows_of(ingested[0])
    assert pq.read_table(output / QUARANTINE).equals(pq.read_table(ingested[0] / QUARANTINE))
    assert names(output) == names(ingested[0]) and not verify(output)


@pytest.mark.parametrize("call", range(4))
def test_a_reader_finds_the_old_set_or_the_new_one_wherever_publishing_stops(
    call: int, ingested: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "set"
    shutil.copytree(ingested[0], output)
    old = ingested[1]
    first = old.shards[0]
    new = old.model_copy(update={"shards": [first], "rows": {"train": first.rows}})
    (tmp_path / "quarantine").write_bytes((output / QUARANTINE).read_bytes())
    calls: list[object] = []

    def stopping(where: Any) -> Callable[..., Any]:
        def replaced(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > call:
                raise KeyboardInterrupt
            return where(*arguments)

        return replaced

    monkeypatch.setattr(shards_module.os, "replace", stopping(os.replace))
    monkeypatch.setattr(Path, "unlink", stopping(Path.unlink))
    with pytest.raises(KeyboardInterrupt):
        publish(output, new, tmp_path / "quarantine", "{}\n")
    monkeypatch.undo()
    found = read_manifest(output)
    assert found.digest() == (old if call < 3 else new).digest()
    assert all((output / shard.name).exists() for shard in found.shards)


def test_what_was_cropped_is_not_cropped_again(
    ingested: tuple[Path, Manifest], collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("blades_dist.data.ingest._build_shards", fail)
        with pytest.raises(KeyboardInterrupt):
            ingest(config(collection[0], tmp_path))
    parts = {file: file.stat().st_mtime_ns for file in (tmp_path / ".building" / "cache" / "parts").rglob("*.parquet")}
    assert parts
    with monkeypatch.context() as patched:
        patched.setattr("blades_dist.data.ingest._build_shards", fail)
        with pytest.raises(KeyboardInterrupt):
            ingest(config(collection[0], tmp_path))
    assert parts == {file: file.stat().st_mtime_ns for file in parts}
    assert ingest(config(collection[0], tmp_path)).digest() == ingested[1].digest()
    assert names(tmp_path) == names(ingested[0])


def test_verify_names_what_is_damaged(ingested: tuple[Path, Manifest], tmp_path: Path) -> None:
    output = tmp_path / "set"
    shutil.copytree(ingested[0], output)
    assert verify(output) == []
    damaged, gone = (output / shard.name for shard in ingested[1].shards[:2])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    gone.unlink()
    problems = verify(output)
    assert len(problems) == 2 and damaged.name in problems[0] and "sha-256" in problems[0] and gone.name in problems[1]
    for arguments, status in (([], 1), (["--report"], 2)):
        values = [f"source={tmp_path / 'nowhere'}", f"output={output}", "--verify", *arguments]
        done = subprocess.run([sys.executable, str(JOB), *values], capture_output=True, text=True, timeout=600)
        if not arguments:
            assert done.returncode == status and damaged.name in done.stderr and "2 problems" in done.stdout


def test_near_copies_go_and_what_was_there_stays(
    ray_cluster: None, photo_writer: Callable[[Path, int], None], tmp_path: Path
) -> None:
    source, output = tmp_path / "photos", tmp_path / "out"
    for index in range(12):
        photo_writer(source / f"{index}.jpg", index)
    before = ingest(config(source, output))
    assert sum(before.rows.values()) == 12 and before.quarantine == {}
    for index in range(6):
        # Of these all but the first are larger, and would win if nothing were there yet.
        picture = Image.open(source / f"{index}.jpg")
        side = 90 if index == 0 else 200
        scaled = picture.resize((side, side))
        scaled.save(source / f"copy{index}.jpg", quality=80, exif=picture.info["exif"])
        shutil.copy(source / f"{index}.faces.json", source / f"copy{index}.faces.json")
    after = ingest(config(source, output))
    assert after.quarantine == {"near_duplicate": 6} and after.files_seen == 18
    assert {row["path"] for row in rows_of(output)} == {f"{index}.jpg" for index in range(12)}
    refused = {row["path"]: row["detail"] for row in pq.read_table(output / QUARANTINE).to_pylist()}
    assert refused == {f"copy{i}.jpg": f"shows the same picture as {i}.jpg" for i in range(6)}
    fresh = ingest(config(source, tmp_path / "fresh"))
    kept = {row["path"] for row in rows_of(tmp_path / "fresh")}
    assert fresh.quarantine == {"near_duplicate": 6} and {"0.jpg", "copy1.jpg", "copy5.jpg"} <= kept
    assert sum(ingest(config(source, tmp_path / "all", near_duplicate_bits=0)).rows.values()) == 18


def test_sets_are_merged_split_again_and_binned_again(
    ingested: tuple[Path, Manifest],
    photo_writer: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    for index in range(300, 330):
        photo_writer(tmp_path / "more" / f"{index}.jpg", index)
    second = ingest(config(tmp_path / "more", tmp_path / "second"))
    edges = {"iso": [100, 400]}
    both = [str(ingested[0]), str(tmp_path / "second")]
    merged = ingest(
        config(both, tmp_path / "both", splits={"train": 0.5, "val": 0.5}, split_seed=3, ordinal_edges=edges)
    )
    assert sum(merged.rows.values()) == sum(ingested[1].rows.values()) + sum(second.rows.values())
    assert merged.rows["test"] == 0 and merged.ordinal_edges == {"iso": (100, 400)}
    before = {row["id"]: row for folder in (ingested[0], tmp_path / "second") for row in rows_of(folder)}
    for row in rows_of(tmp_path / "both"):
        old = before.pop(row["id"])
        assert all(row[key] == old[key] for key in ("image", "box", "landmarks", "path", "source", "exif_make"))
        level = -1 if row["exif_iso"] is None else sum(row["exif_iso"] > edge for edge in (100, 400))
        assert row["label_iso"] == level and row["label_aperture"] == -1
    assert not before and not verify(tmp_path / "both")
