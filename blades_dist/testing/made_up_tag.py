"""Tags that the package does not have, each added as one row of its table for the processes of one test."""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]
CONTRAST = """ExifTag(
    name="contrast",
    words="contrast setting",
    prompt="a photo of the face captured with the contrast set to {}",
    fields=(ExifField(0xA408, "Contrast"),),
    values=Codes({0: "normal", 1: "soft", 2: "hard"}),
    classes=("soft", "normal", "hard"),
)"""
DISTANCE = """ExifTag(
    name="distance",
    words="subject distance",
    prompt="a photo of a face with the {} value of subject distance",
    fields=(ExifField(0x9206, "SubjectDistance"),),
    values=Quantity("metres", 0.05, 1000.0, abbreviated=("m",)),
)"""


def made_up_tags(folder: Path, *rows: str) -> dict[str, str]:
    """Environment of processes whose table of tags ends with these ``rows``.

    Python imports the ``sitecustomize`` module that is written to ``folder`` when it starts, before anything else of
    the package. So the rows are there in every process that is started in this environment and in all that they start
    (Ray's workers, the decoders' processes), as if they stood in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    added = "".join(f"tags.EXIF_TAGS += ({row},)\n" for row in rows)
    (folder / "sitecustomize.py").write_text("from blades_dist import tags\nfrom blades_dist.tags import *\n\n" + added)
    path = [str(folder), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    environment.pop("RAY_ADDRESS", None)  # a cluster that runs already has the table without them
    return environment
