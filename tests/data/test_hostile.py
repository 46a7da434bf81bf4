"""The hostile corpus through the bounded process: nothing crashes it, hangs it or exhausts it; every file is told."""

from pathlib import Path
from typing import Any

import pytest

from blades_dist.config import IngestConfig
from blades_dist.data.records import REASONS
from blades_dist.data.sandbox import PhotoProcess
from blades_dist.data.sources.base import Annotations
from tests.data import hostile
from tests.data.photos import peak_mebibytes, photo_of

PEAK_MEBIBYTES = 1536


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hostile")
    return folder, hostile.write(folder)


def test_every_hostile_file_ends_as_expected(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = corpus
    assert len(expected) >= 300
    config = IngestConfig.model_validate({"source": folder, "output": folder, "memory_mebibytes": PEAK_MEBIBYTES})
    surprises = []
    with PhotoProcess(config) as process:
        first = process.pid
        assert first is not None
        for name, allowed in expected.items():
            data = (folder / name).read_bytes()
            outcome = process.process(photo_of(data, name), data, Annotations())
            assert process.pid == first, f"{name} took the child down: {outcome.rejected}"
            assert len(outcome.rejected) == 1 and not len(outcome.rows)
            face, reason, detail = outcome.rejected[0]
            assert face is None and reason in REASONS and detail
            if reason not in allowed:
                surprises.append((name, reason, detail, sorted(allowed)))
        peak = peak_mebibytes(first)
    print(f"{len(expected)} files, peak {peak} MiB")
    assert not surprises
    assert peak <= PEAK_MEBIBYTES


def test_the_corpus_is_always_the_same(corpus: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, once = corpus
    assert once == hostile.write(tmp_path)
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in once)
