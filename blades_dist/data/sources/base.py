"""What a collection of photographs must be able to do to be ingested. No Ray here."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from blades_dist.data.exif import Raw
from blades_dist.data.faces import Face


class SourceError(ValueError):
    """A collection that cannot be ingested; the message is for the user."""


@dataclass(frozen=True)
class Entry:
    """One item of a collection, as listed: what is needed to read it again, nothing of its content.

    ``path`` names it, once in its collection, in printable text; ``mark`` changes whenever its content or metadata may
    have (modification times, say). ``note`` is the source's own, of where it lies and what was said of it (JSON).
    ``problem`` is (reason, detail) when it is not worth reading. ``sha256`` where the source knows it already.
    """

    path: str
    source: str
    size: int
    mark: str
    note: str = ""
    sha256: str = ""
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Annotations:
    """What a source says of an item besides its bytes; what it does not say is read from the bytes.

    ``faces`` in pixels of the upright photo or, with ``frame``, of a picture of that (width, height) to which the photo
    was or will be resized as a whole; ``exif`` raw values of every tag of ``tasks.TAGS``, None for those that the
    source does not know: they are read from the bytes. ``levels`` (0 is the lowest) of ordinal tags, where a source
    publishes levels instead of values (they win over bin edges).
    """

    faces: Sequence[Face] | None = None
    frame: tuple[float, float] | None = None
    exif: Raw | None = None
    levels: Mapping[str, int] = field(default_factory=dict)


class Source(ABC):
    """A collection of photographs. Objects travel to workers as JSON (``IngestConfig`` makes them), so they hold no
    connection that cannot be opened again there."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every item, one after another, in an order that depends on the collection alone; memory stays bounded.

        Raises:
            SourceError: there is no such collection.
        """

    @abstractmethod
    def data(self, entry: Entry) -> bytes:
        """The image file's bytes.

        Raises:
            OSError: it cannot be read.
            Rejected: it cannot be used, with a reason of ``records.REASONS``.
        """

    def annotations(self, entry: Entry, data: bytes) -> Annotations:
        """What is said of it besides its bytes.

        Raises:
            OSError: a file beside it cannot be read.
            Rejected: ``bad_sidecar``, with what is wrong and where.
        """
        return Annotations()

    def rows(self, entry: Entry) -> pa.Table | None:
        """Rows that are ready (``records.shard_schema``), from a source whose photos were ingested before."""
        return None
