"""What a process does whose table has a made-up tag: python -m tests.data.made_up_tag_walk FOLDER (see its test)."""

import sys
from pathlib import Path

import piexif
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig, RayConfig
from blades_dist.data.exif import read_exif
from blades_dist.data.exif_document import document
from blades_dist.data.explain import inspect_file
from blades_dist.data.ingest import ingest
from blades_dist.data.metadata import exif_of_json
from blades_dist.data.records import label_column
from blades_dist.detect.inspect import inspect_files, lines
from blades_dist.detect.schema import ImageReport
from blades_dist.raylocal import cluster
from blades_dist.serving.page import tags_script
from blades_dist.tasks import TAGS, task_set, vocabulary
from blades_dist.testing.toy_detector import toy_detector
from tests.data.conftest import encoded, pixels_of, write_sidecar

CODES = (0, 1, 2, 7, None)
CLASSES = ("normal", "soft", "hard", None, None)


def write_photos(folder: Path) -> list[Path]:
    """One photograph for every one of ``CODES``; None: without the tag."""
    files = []
    for index, code in enumerate(CODES):
        own = {piexif.ExifIFD.ISOSpeedRatings: 100} | ({} if code is None else {piexif.ExifIFD.Contrast: code})
        files.append(folder / f"{index}.jpg")
        files[-1].write_bytes(encoded(pixels_of(index, 96), quality=90, exif=piexif.dump({"Exif": own})))
        write_sidecar(files[-1])
    return files


def walk(folder: Path) -> None:
    photos, shards = folder / "photos", folder / "shards"
    photos.mkdir()
    files = write_photos(photos)

    # the table of tasks: the last tag, its three columns before those of the manipulation tasks
    tasks = task_set()
    assert TAGS[-1] == "contrast" and tasks.width == 53 and tasks.columns["contrast"] == slice(45, 48)
    assert tasks.prompts[45] == "a photo of the face captured with the contrast set to soft"

    # read from files and from exported JSON, printed in the page of docs
    assert tuple(read_exif(file.read_bytes())["contrast"] for file in files) == CLASSES
    assert (exif_of_json(b'{"EXIF:Contrast": "Hard"}') or {})["contrast"] == "hard"
    assert "| contrast | contrast setting | Contrast (0xA408) | 3 classes |" in document()

    # ingested by Ray's workers and their decoders
    with cluster(RayConfig(num_cpus=2)):
        manifest = ingest(IngestConfig(source=(str(photos),), output=shards, near_duplicate_bits=0))
    assert manifest.vocabularies["contrast"] == ["soft", "normal", "hard"]
    rows = [row for shard in manifest.shards for row in pq.read_table(shards / shard.name).to_pylist()]
    found = {row["path"]: (row["exif_contrast"], row[label_column("contrast")]) for row in rows}
    assert found == {
        file.name: (name, -1 if name is None else vocabulary("contrast").index(name))
        for file, name in zip(files, CLASSES, strict=True)
    }

    # named to people: --inspect, predict, the service's page
    told = inspect_file(files[2], IngestConfig(source=(str(photos),), output=shards)).text()
    assert "contrast setting hard (from Contrast = 2.0)" in told
    ((_, report),) = inspect_files(toy_detector(), files[2:3], 10**7, 10**7, whole=True)
    assert isinstance(report, ImageReport)
    suggested, claimed = lines("2.jpg", report)[-2:]
    assert "contrast setting " in suggested and "contrast setting hard (" in claimed
    assert '"contrast": "contrast setting"' in tags_script()


if __name__ == "__main__":
    walk(Path(sys.argv[1]))
