"""What a process does whose table has made-up tags: python -m tests.data.made_up_tag_walk FOLDER (see its test)."""

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
from blades_dist.data.report import write_report
from blades_dist.detect.inspect import inspect_files, lines
from blades_dist.detect.schema import ImageReport
from blades_dist.raylocal import cluster
from blades_dist.serving.page import tags_script
from blades_dist.tasks import TAGS, task_set
from blades_dist.testing.toy_detector import toy_detector
from tests.data.conftest import encoded, pixels_of, write_sidecar

EDGES = {"iso": (50.0, 100.0), "distance": (1.0, 2.0)}
CODES = (0, 1, 2, 7, None)
CLASSES = ("normal", "soft", "hard", None, None)
METRES = (1.5, 2.5, 0.5, 5000.0, None)


def write_photos(folder: Path) -> list[Path]:
    """One photograph for every one of ``CODES`` and ``METRES``; None: without the tag."""
    files = []
    for index, (code, metres) in enumerate(zip(CODES, METRES, strict=True)):
        own: dict[int, object] = {piexif.ExifIFD.ISOSpeedRatings: 100}
        own |= {} if code is None else {piexif.ExifIFD.Contrast: code}
        own |= {} if metres is None else {piexif.ExifIFD.SubjectDistance: (int(metres * 10), 10)}
        files.append(folder / f"{index}.jpg")
        files[-1].write_bytes(encoded(pixels_of(index, 96), quality=90, exif=piexif.dump({"Exif": own})))
        write_sidecar(files[-1])
    return files


def walk(folder: Path) -> None:
    photos, shards = folder / "photos", folder / "shards"
    photos.mkdir()
    files = write_photos(photos)

    # the table of tasks: the last tags, their columns before those of the manipulation tasks
    tasks = task_set()
    assert TAGS[-2:] == ("contrast", "distance") and tasks.width == 56
    assert tasks.columns["contrast"] == slice(45, 48) and tasks.columns["distance"] == slice(48, 51)
    assert tasks.prompts[45] == "a photo of the face captured with the contrast set to soft"

    # read from files and from exported JSON, printed in the page of docs
    found = [read_exif(file.read_bytes()) for file in files]
    assert tuple(raw["contrast"] for raw in found) == CLASSES
    assert tuple(raw["distance"] for raw in found) == (*METRES[:3], None, None)
    exported = exif_of_json(b'{"EXIF:Contrast": "Hard", "Subject Distance": "2.5 m"}') or {}
    assert (exported["contrast"], exported["distance"]) == ("hard", 2.5)
    assert "| contrast | contrast setting | Contrast (0xA408) | 3 classes |" in document()
    assert "| distance | subject distance | SubjectDistance (0x9206) | metres | 0.05 to 1000 |" in document()

    # ingested by Ray's workers and their decoders
    config = IngestConfig(source=(str(photos),), output=shards, ordinal_edges=EDGES, near_duplicate_bits=0)
    with cluster(RayConfig(num_cpus=2)):
        manifest = ingest(config)
    assert manifest.vocabularies["contrast"] == ["soft", "normal", "hard"]
    assert manifest.ordinal_edges["distance"] == EDGES["distance"]
    rows = [row for shard in manifest.shards for row in pq.read_table(shards / shard.name).to_pylist()]
    labels = {row["path"]: (row[label_column("contrast")], row[label_column("distance")]) for row in rows}
    assert labels == {"0.jpg": (1, 1), "1.jpg": (0, 2), "2.jpg": (2, 0), "3.jpg": (-1, -1), "4.jpg": (-1, -1)}
    assert {row["path"]: row["exif_contrast"] for row in rows} == dict(
        zip([file.name for file in files], CLASSES, strict=True)
    )

    # named to people: --inspect, the data report, predict, the service's page
    told = inspect_file(files[2], config).text()
    assert "contrast setting hard (from Contrast = 2.0)" in told
    assert "subject distance 0.5 metres (from SubjectDistance = 0.5)" in told
    report = write_report(shards).read_text()
    assert "contrast" in report and "metres" in report
    ((_, answer),) = inspect_files(toy_detector(), files[2:3], 10**7, 10**7, whole=True)
    assert isinstance(answer, ImageReport)
    suggested, claimed = lines("2.jpg", answer)[-2:]
    assert "contrast setting " in suggested and "contrast setting hard (" in claimed and "subject distance" in suggested
    assert '"contrast": "contrast setting"' in tags_script()


if __name__ == "__main__":
    walk(Path(sys.argv[1]))
