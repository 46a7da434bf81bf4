"""The record of a run: what code it is told by, what changed between starts, and that a kill leaves it whole."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blades_dist.config import PretrainConfig
from blades_dist.training import provenance
from blades_dist.training.provenance import (
    RUN,
    changes,
    describe_code,
    describe_run,
    difference,
    read_record,
    record_start,
    write_record,
)

CONFIG = PretrainConfig.model_validate({"data": {"shards": "shards"}, "train": {"seed": 5}})
WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout with one commit."""
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("a = 1\n")
    (folder / "page.html").write_text("<p>")
    git(folder.parent, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, env=os.environ | WHO, capture_output=True, text=True, check=True).stdout.strip()


def test_a_start_says_what_it_computes_with() -> None:
    start = describe_run(CONFIG, "d1", world_size=4, hosts=2, step=7, command=["python", "a b.py"])
    json.dumps(start)
    assert (start["manifest"], start["seed"], start["world_size"], start["hosts"], start["step"]) == ("d1", 5, 4, 2, 7)
    assert start["command"] == "python 'a b.py'"
    assert {"blades_dist", "python", "ray", "torch", "deepspeed", "transformers", "numpy"} <= start["versions"].keys()
    assert len(start["code"]["source"]) == 64 and "threads" in start["device"]


def test_code_is_told_by_commit_and_changes(package: Path) -> None:
    clean = describe_code(package)
    assert clean["commit"] == git(package, "rev-parse", "HEAD") and clean["branch"] == "main"
    assert clean["dirty"] is False and clean["diff"] is None
    (package / "__init__.py").write_text("a = 2\n")
    one = describe_code(package)
    (package / "__init__.py").write_text("a = 3\n")
    two = describe_code(package)
    assert one["dirty"] and two["dirty"] and one["commit"] == clean["commit"]
    assert len({one["diff"], two["diff"]}) == 2 and len({code["source"] for code in (clean, one, two)}) == 3


def test_a_copy_without_git_is_told_to_be_the_same_code(package: Path, tmp_path: Path) -> None:
    here = describe_code(package)
    copy = tmp_path / "elsewhere" / "package"
    shutil.copytree(package, copy)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"made by Python")
    there = describe_code(copy)
    assert there["commit"] is None and there["source"] == here["source"]
    (copy / "page.html").rename(copy / "other.html")
    assert describe_code(copy)["source"] != here["source"]


def test_somebody_elses_checkout_around_the_package_says_nothing(package: Path) -> None:
    installed = package.parent / "env" / "package"
    shutil.copytree(package, installed)  # not one of the checkout's files
    assert describe_code(installed)["commit"] is None


def test_no_git_is_no_error(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_code(package)
    monkeypatch.setenv("PATH", "")
    assert describe_code(package) == {**dict.fromkeys(here), "source": here["source"]}


def start(**values: Any) -> dict[str, Any]:
    return describe_run(CONFIG, "d1") | values


def test_every_start_is_appended(tmp_path: Path) -> None:
    assert write_record(tmp_path, start())["reason"] == "first"
    assert write_record(tmp_path, start(step=4))["reason"] == "resumed"
    found = read_record(tmp_path)["starts"]
    assert [(entry["reason"], entry["step"]) for entry in found] == [("first", 0), ("resumed", 4)]
    assert list(tmp_path.iterdir()) == [tmp_path / RUN]
    (tmp_path / "other").mkdir()
    assert write_record(tmp_path / "other", start(step=4, started_from="a"))["reason"] == "from another run"


def test_a_damaged_record_is_kept_aside(tmp_path: Path) -> None:
    for damage in ("{", "[]", '{"schema_version": 99, "starts": []}'):
        (tmp_path / RUN).write_text(damage)
        with pytest.raises(ValueError, match=r"run.json (is no record|has schema version 99)"):
            read_record(tmp_path)
        assert changes(tmp_path, start()) == []
        write_record(tmp_path, start(step=4))
        assert (tmp_path / f"{RUN}.damaged").read_text() == damage
        assert len(read_record(tmp_path)["starts"]) == 1


def test_what_changed_is_told_in_words(tmp_path: Path) -> None:
    first = start()
    assert difference(first, start()) == [], "time, host and command are no difference"
    now = start(
        versions=first["versions"] | {"torch": "9.9", "triton": "9.9"},
        code={**first["code"], "source": "0" * 64, "commit": None},
        device="NVIDIA H100",
        world_size=4,
        manifest="d2",
    )
    lines = difference(first, now)
    assert f"torch: {first['versions']['torch']} there, 9.9 now" in lines and "workers: 1 there, 4 now" in lines
    assert f"device: {first['device']} there, NVIDIA H100 now" in lines
    assert "data (manifest digest): d1 there, d2 now" in lines
    assert lines[0].startswith("code: ") and lines[0].endswith("there, source 000000000000 now")
    assert changes(tmp_path, now) == [], "no earlier start"
    write_record(tmp_path, first)
    assert changes(tmp_path, now) == lines
    said: list[str] = []
    record_start(tmp_path, now, said.append)
    assert said == [f"not as at the last start: {line}" for line in lines]
    assert len(read_record(tmp_path)["starts"]) == 2


def test_the_processor_is_named() -> None:
    assert provenance.device_name() and not provenance.device_name().startswith(",")
