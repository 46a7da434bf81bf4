"""From what a user has to the two shard sets that an evaluation reads."""

from pathlib import Path
from typing import Any, Literal

from blades_dist.config import IngestConfig
from blades_dist.data.records import MANIFEST, read_manifest
from blades_dist.data.sources.listed import FAKE, REAL

SPLIT = "test"
_KINDS: dict[str, Literal["photographs", "generated"]] = {REAL: "photographs", FAKE: "generated"}


class TestsetError(ValueError):
    """A test set that cannot be used; the message says what was expected where."""

    __test__ = False  # pytest: the name is no test's


def prepare_testset(
    source: Path,
    output: Path,
    *,
    faces: Literal["located", "whole"] = "located",
    locator: Literal["haar", "yunet", "mediapipe"] = "haar",
    locator_model: Path | None = None,
    min_face_px: int = 64,
    crop_scale: float = 1.3,
    **options: Any,
) -> tuple[Path, Path]:
    """Shard folders of the photographs and of the generated faces of a test set, every row in the split ``test``.

    ``source`` is a folder with ``real/`` and ``fake/<generator>/``, a CSV list (``sources.listed``), or a folder whose
    ``real/`` and ``fake/`` are shard sets already, which are returned as they are. Images go through the ingest into
    ``output/real`` and ``output/fake``; what is unchanged since an earlier call is not made again. The parameters must
    be those that the detectors' crops were made with; ``options`` are further fields of ``IngestConfig``. Photographs
    need no EXIF here. Near copies stay, since two generators may have worked on one photograph; files with equal bytes
    do not. Needs a connection to Ray unless both are shard sets.

    Raises:
        TestsetError: ``source`` is none of the three, or no face of a side could be used.
        SourceError, LocatorError: as ``ingest``.
    """
    folders = {side: source / side for side in _KINDS}
    as_list = source.suffix.lower() == ".csv" and source.is_file()
    if not as_list and not all(folder.is_dir() for folder in folders.values()):
        raise TestsetError(
            f"{source} is no test set: expected a folder with {REAL}/ and {FAKE}/<generator>/, or a .csv file with the "
            "columns path, label and generator"
        )
    ready = [folder for folder in folders.values() if not as_list and (folder / MANIFEST).is_file()]
    if len(ready) == len(folders):
        return folders[REAL], folders[FAKE]
    if ready:
        raise TestsetError(f"{ready[0]} is a shard set and the other side is not; ingest that one first")
    made = []
    for side, folder in folders.items():
        config = IngestConfig.model_validate(
            {
                "source": str(source if as_list else folder),
                "format": "list" if as_list else "folder",
                "output": output / side,
                "kind": _KINDS[side],
                "faces": faces,
                "locator": locator,
                "locator_model": locator_model,
                "min_face_px": min_face_px,
                "crop_scale": crop_scale,
                "min_tags": 0,
                "near_duplicate_bits": 0,
                "splits": {SPLIT: 1.0},
                **options,
            }
        )
        made.append(_ingested(config))
    return made[0], made[1]


def _ingested(config: IngestConfig) -> Path:
    from blades_dist.data.ingest import ingest  # imports Ray, which reading shard sets does without

    ingest(config)
    manifest = read_manifest(config.output)
    if not manifest.rows.get(SPLIT):
        raise TestsetError(
            f"no face of {config.source[0]} could be used as {config.kind}: {manifest.quarantine}; "
            f"{config.output / 'quarantine.parquet'} says why of each file"
        )
    return config.output
