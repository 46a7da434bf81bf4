"""The table of EXIF tags: one row holds everything that this system knows of a tag.

Adding a tag is one more row of ``EXIF_TAGS``. Its task, logit columns and prompts (``tasks``), shard columns, reading
from files and from exported JSON (``data.exif``, ``data.metadata``), ``docs/exif.md`` and its name in reports, on the
command line and on the page all follow from the row. Order, classes and prompts of the rows are those of the paper
(BLADES, ICCV 2025, arXiv 2507.22824) and its released code: logit columns follow from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

LEVELS = ("low", "medium", "high")
MAKES = ("Nikon", "Apple", "FUJIFILM", "Canon", "Samsung", "Sony", "Panasonic", "Nokia", "Pentax", "others")


@dataclass(frozen=True)
class ExifField:
    """A field of EXIF: its number and name in the standard (CIPA DC-008).

    ``apex`` turns a stored APEX value into the tag's unit (None: it is stored in that unit). ``exported_as`` are
    further names of it in JSON that tools write, in ``plain`` form, each with its rank: 0 for the field itself, more
    for what is derived from it. An APEX field has none, since exporters convert it and so use the other field's name.
    ``repeated``: an exporter may give a list of several values, of which the first counts.
    """

    number: int
    name: str
    apex: Callable[[float], float] | None = None
    exported_as: Mapping[str, int] = field(default_factory=dict)
    repeated: bool = False


@dataclass(frozen=True)
class Quantity:
    """Values are numbers in ``unit`` from ``low`` to ``high``, both included; anything else was written by a broken or
    joking writer and is absent. ``overflow`` is a stored number that stands for "too large for this field",
    ``abbreviated`` are the words that exported JSON has after a number ("1/60 sec")."""

    unit: str
    low: float
    high: float
    overflow: float | None = None
    abbreviated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Codes:
    """Values are classes by a stored code: ``classes`` by code, ``other`` for every code that is not listed (None: it
    is absent). ``bits`` selects the bits of a stored code that count; ``ignored`` says what the others mean.

    ``written_as`` are codes by the words that tools export, as regular expressions for a whole word in ``plain`` form,
    the first match first; the tag's own classes are understood besides.
    """

    classes: Mapping[int, str]
    other: str | None = None
    bits: int = 2**32 - 1
    ignored: str = ""
    written_as: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Values are classes by a stored name: the first of ``openings`` (words, class) whose words open the name counts,
    every other name is ``other``. ``qualified`` come before them: (words, words of the field ``qualifier``, class)."""

    openings: tuple[tuple[str, str], ...]
    other: str
    qualifier: ExifField
    qualified: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class ExifTag:
    """One EXIF tag, and with it one pretext task.

    ``name`` is its key in configurations, shard columns and answers; ``words`` are what people are told, in the middle
    of a sentence; ``prompt`` is the text prompt with ``{}`` for a class. ``fields`` are where it is read from, the
    first usable one first, and ``values`` how. ``classes`` are the labels in order; ordinal tags have ``LEVELS``.
    ``released_as`` are its names in the label file that BLADES' authors released. An ``optional`` tag is stored by
    every ingest and trained on only where a configuration asks for it.
    """

    name: str
    words: str
    prompt: str
    fields: tuple[ExifField, ...]
    values: Quantity | Codes | Names
    classes: tuple[str, ...] = LEVELS
    released_as: tuple[str, ...] = ()
    optional: bool = False

    @property
    def kind(self) -> Literal["ordinal", "categorical"]:
        return "ordinal" if isinstance(self.values, Quantity) else "categorical"

    @property
    def unit(self) -> str | None:
        """Unit of its values; None where they are classes."""
        return self.values.unit if isinstance(self.values, Quantity) else None


def plain(text: str) -> str:
    """Lower-case letters and digits alone: "F-Number", "FNumber" and "f number" are one name."""
    return "".join(c for c in text.lower() if c.isalnum())


def words_of(task: str) -> str:
    """What people are told a task is about: a tag's words, else the task's own name."""
    return next((tag.words for tag in EXIF_TAGS if tag.name == task), task.replace("_", " "))


# Phones sold as Nokia carry HMD Global since 2017; Pentax was Asahi Optical until 2002, and its cameras were made by
# Ricoh Imaging later. Sony Ericsson was a maker of its own.
_MAKERS = Names(
    openings=(
        ("nikon", "Nikon"),
        ("apple", "Apple"),
        ("fujifilm", "FUJIFILM"),
        ("fuji photo film", "FUJIFILM"),
        ("canon", "Canon"),
        ("samsung", "Samsung"),
        ("sony ericsson", "others"),
        ("sonyericsson", "others"),
        ("sony", "Sony"),
        ("panasonic", "Panasonic"),
        ("matsushita", "Panasonic"),
        ("nokia", "Nokia"),
        ("hmd global", "Nokia"),
        ("pentax", "Pentax"),
        ("asahi", "Pentax"),
    ),
    other="others",
    qualifier=ExifField(0x0110, "Model", exported_as={"cameramodelname": 1}),
    qualified=(("ricoh", "pentax", "Pentax"),),
)

# Ranges are what a photographic camera can have. The 35 mm equivalent is no focal length and never taken for one.
EXIF_TAGS: tuple[ExifTag, ...] = (
    ExifTag(
        name="iso",
        words="ISO speed",
        prompt="a photo of a face with the {} value of ISO speed rating",
        fields=(
            ExifField(0x8827, "PhotographicSensitivity", exported_as={"iso": 0, "isospeedratings": 0}, repeated=True),
            ExifField(0x8833, "ISOSpeed"),
            ExifField(0x8832, "RecommendedExposureIndex"),
            ExifField(0x8831, "StandardOutputSensitivity"),
        ),
        # The first field has two bytes; a camera gives a speed beyond its end in one of the later, wider ones.
        values=Quantity("ISO speed", 1.0, 10_000_000.0, overflow=65535, abbreviated=("iso",)),
        released_as=("ISO",),
    ),
    ExifTag(
        name="aperture",
        words="aperture",
        prompt="a photo of a face with the {} value of aperture",
        fields=(
            ExifField(0x829D, "FNumber", exported_as={"aperture": 1, "aperturevalue": 2}),
            ExifField(0x9202, "ApertureValue", apex=lambda value: 2 ** (value / 2)),
        ),
        values=Quantity("f-number", 0.5, 128.0),
        released_as=("Aperture",),
    ),
    ExifTag(
        name="exposure_time",
        words="exposure time",
        prompt="a photo of a face with the {} value of exposure time",
        fields=(
            ExifField(0x829A, "ExposureTime", exported_as={"exposure": 1, "shutterspeedvalue": 2, "shutterspeed": 3}),
            ExifField(0x9201, "ShutterSpeedValue", apex=lambda value: 2**-value),
        ),
        values=Quantity("seconds", 1e-6, 86_400.0, abbreviated=("s", "sec", "secs", "second", "seconds")),
        released_as=("Exposure Time",),
    ),
    ExifTag(
        name="focal_length",
        words="focal length",
        prompt="a photo of a face with the {} value of focal length",
        fields=(ExifField(0x920A, "FocalLength"),),
        values=Quantity("millimetres", 0.5, 5_000.0, abbreviated=("mm",)),
        released_as=("Focal Length",),
    ),
    ExifTag(
        name="make",
        words="camera brand",
        prompt="a photo of a face taken with the {} brand camera",
        fields=(ExifField(0x010F, "Make", exported_as={"manufacturer": 1}),),
        values=_MAKERS,
        classes=MAKES,
        released_as=("Make",),
    ),
    ExifTag(
        name="metering_mode",
        words="metering",
        prompt="a photo of the face captured using the {} metering mode",
        fields=(ExifField(0x9207, "MeteringMode"),),
        values=Codes(
            {
                1: "average",
                2: "centerweighted",
                3: "spot",
                4: "multi-spot",
                5: "multi-segment",
                6: "partial",
            },
            other="others",  # 0 (unknown) and 255 (other) among them
            written_as={
                "unknown": 0,
                "average": 1,
                "cent(er|re)weighted(average)?": 2,
                "spot": 3,
                "multispot": 4,
                "multisegment|multizone|pattern|matrix": 5,
                "partial": 6,
                "other": 255,
            },
        ),
        classes=(
            "average",
            "centerweighted",
            "others",
            "partial",
            "spot",
            "multi-spot",
            "multi-segment",
            "evaluative",
        ),
        released_as=("Metering Mode",),
    ),
    ExifTag(
        name="exposure_mode",
        words="exposure mode",
        prompt="a photo of the face captured using the {} exposure mode",
        fields=(ExifField(0xA402, "ExposureMode"),),
        values=Codes(
            {0: "auto", 1: "manual", 2: "auto-bracketing"},
            written_as={"auto(exposure)?": 0, "manual(exposure)?": 1, "autobracket(ing)?": 2},
        ),
        classes=(
            "auto",
            "auto-bracketing",
            "program",
            "manual",
            "aperture-priority",
            "easy-shooting",
            "shutter-priority",
        ),
        released_as=("Exposure Mode",),
    ),
    ExifTag(
        name="white_balance",
        words="white balance",
        prompt="a photo of the face captured using the {} white balance mode",
        fields=(ExifField(0xA403, "WhiteBalance", exported_as={"whitebalancemode": 1}),),
        values=Codes({0: "auto", 1: "manual"}, written_as={"auto(whitebalance)?": 0, "manual(whitebalance)?": 1}),
        classes=("auto", "manual"),
        released_as=("White Balance Mode", "White Balance"),
    ),
    ExifTag(
        name="exposure_program",
        words="exposure program",
        prompt="a photo of the face captured using the exposure program set to {}",
        fields=(ExifField(0x8822, "ExposureProgram"),),
        values=Codes(
            {
                1: "manual control",
                2: "normal program",
                3: "aperture priority",
                4: "shutter priority",
                7: "portrait mode",
                8: "landscape mode",
            },
            written_as={
                "notdefined": 0,
                "manual(control)?": 1,
                "program(ae)?|normalprogram": 2,
                "aperturepriority(ae)?": 3,
                "shutter(speed)?priority(ae)?": 4,
                "creativeslowspeed": 5,
                "actionhighspeed": 6,
                "portrait(mode)?": 7,
                "landscape(mode)?": 8,
            },
        ),
        classes=(
            "landscape mode",
            "manual control",
            "normal program",
            "portrait mode",
            "shutter priority",
            "aperture priority",
        ),
        released_as=("Exposure Program",),
    ),
    ExifTag(
        name="flash",
        words="flash",
        prompt="a photo of the face taken with the flash {}",
        fields=(ExifField(0x9209, "Flash"),),
        values=Codes(
            {0: "off", 1: "on"},
            bits=1,
            ignored="return light, mode, red-eye",
            written_as={".*(notfire|noflash).*|off.*": 0, ".*fired.*|on|yes|true": 1},
        ),
        classes=("off", "on"),
        released_as=("Flash",),
        optional=True,
    ),
)
