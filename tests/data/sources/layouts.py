"""Small collections in every layout that a source reads; made of real files."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blades_dist.config import IngestConfig
from blades_dist.data.sources.base import Entry, Source

REPOSITORY = Path(__file__).parents[3]

READ_ELSEWHERE = """
import hashlib, json, sys
from blades_dist.config import IngestConfig
from blades_dist.data.sources.base import Entry
from blades_dist.data.sources.factory import open_source
uri, config, entry = json.loads(sys.stdin.read())
source = open_source(uri, IngestConfig.model_validate(config))
entry = Entry(**entry)
data = source.data(entry)
print(json.dumps([hashlib.sha256(data).hexdigest(), repr(source.annotations(entry, data))]))
"""


def config(source: str | Path, **options: Any) -> IngestConfig:
    return IngestConfig.model_validate({"source": str(source), "output": "unused", **options})


def by_path(source: Source) -> dict[str, Entry]:
    """Entries by path, which must be unique and come in the same order again."""
    entries = list(source.entries())
    assert entries == list(source.entries())
    found = {entry.path: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def read_elsewhere(uri: str, options: IngestConfig, entry: Entry) -> list[str]:
    """sha-256 of an entry's bytes and what is given of it, as another process sees them."""
    task = json.dumps([uri, options.model_dump(mode="json"), vars(entry)])
    done = subprocess.run(
        [sys.executable, "-c", READ_ELSEWHERE], input=task, capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return list(json.loads(done.stdout))


def picture(index: int, side: int = 32, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_tar(file: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def fdf_item(offset: float = 0.0) -> dict[str, Any]:
    """An upright face of FDF whose proportions are those that mouths are derived from."""
    box = [0.2 + offset, 0.1, 0.8 + offset, 0.7]
    shares = [(0.5, 0.58), (0.31, 0.38), (0.69, 0.38), (0.1, 0.5), (0.9, 0.5), (0.0, 1.3), (1.0, 1.3)]
    points = [[box[0] + 0.6 * x, box[1] + 0.6 * y] for x, y in shares]
    return {"bounding_box": box, "landmark": points, "category": "training", "license": "x", "yfcc100m_line_idx": "7"}
