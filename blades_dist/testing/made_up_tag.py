"""A tag that the package does not have, added as one row of its table for the processes of one test."""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]
ROW = """ExifTag(
    name="contrast",
    words="contrast setting",
    prompt="a photo of the face captured with the contrast set to {}",
    fields=(ExifField(0xA408, "Contrast"),),
    values=Codes({0: "normal", 1: "soft", 2: "hard"}),
    classes=("soft", "normal", "hard"),
)"""


def made_up_tag(folder: Path) -> dict[str, str]:
    """Environment of processes whose table of tags has one more row, ``ROW``.

    Python imports the ``sitecustomize`` module that is written to ``folder`` when it starts, before anything else of
    the package. So the row is there in every process that is started in this environment and in all that they start
    (Ray's workers, the decoders' processes), as if it stood in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = f"from blades_dist import tags\nfrom blades_dist.tags import *\n\ntags.EXIF_TAGS += ({ROW},)\n"
    (folder / "sitecustomize.py").write_text(rows)
    path = [str(folder), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
