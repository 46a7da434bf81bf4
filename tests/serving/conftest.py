from pathlib import Path

import pytest

from blades_dist.detect.detector import Detector, load_detector
from blades_dist.testing.toy_detector import write_bundle, write_photographs


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "oc"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def detector(bundle: Path) -> Detector:
    return load_detector(bundle)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, range(300, 306), sidecars=False)
    return sorted(folder.glob("*.jpg"))


@pytest.fixture(scope="session")
def photo(photos: list[Path]) -> Path:
    return photos[2]
