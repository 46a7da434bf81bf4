"""Files that are there whole or not at all."""

import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from blades_dist.files import alone, write_atomically, write_through

KILLED = """
import os, sys
from pathlib import Path
from blades_dist.files import write_atomically
number = 0
while True:
    number += 1
    write_atomically(Path(sys.argv[1]), f"{number}\\n" * 50_000)
    if number == 1:
        print("begun", flush=True)
"""


def test_text_and_bytes_arrive_and_leave_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.txt", "größer\n")
    write_atomically(tmp_path / "new" / "a.txt", b"\x00\xff")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\x00\xff"
    write_atomically(tmp_path / "new" / "a.txt", "größer\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_atomically(file, "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_through(file, half)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        os.kill(writer.pid, signal.SIGKILL)
    lines = file.read_text().splitlines()
    assert len(lines) == 50_000 and len(set(lines)) == 1


def test_a_folder_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    def hold() -> AbstractContextManager[None]:
        return alone(tmp_path, ValueError("taken"))

    with hold(), pytest.raises(ValueError, match="taken"), hold():
        raise AssertionError("both hold it")
    with hold():
        pass
