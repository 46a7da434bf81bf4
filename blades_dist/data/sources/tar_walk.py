"""Members of a tar file by their headers alone. No Ray here."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from blades_dist.data.decode import Rejected
from blades_dist.data.sources.storage import printable

_BLOCK = 512  # bytes; tar's unit
_LONGEST_HEADER = 2**20  # bytes; long names and pax records
_PADDING = 2**16  # bytes after the end that are looked at; writers fill up to 10 KiB


@dataclass(frozen=True)
class Member:
    """``name`` in printable text, ``offset`` and ``size`` of the content in the tar, in bytes; ``plain``: no link."""

    name: str
    offset: int
    size: int
    plain: bool


def tar_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Members of an uncompressed tar of ``size`` bytes, in its order. Contents are skipped by seeking; memory is one
    header's.

    Raises:
        Rejected: ``truncated`` or ``unreadable``, with the offset, when it cannot be listed to its end; members before
            that were yielded.
    """
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, _Headers(file)), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in _headers(tar):
                if member.size < 0:
                    raise Rejected("unreadable", f"the header at byte {member.offset} claims a negative size")
                if member.isdir():
                    continue
                end = member.offset_data + (member.size if member.isreg() else 0)
                if end > size:
                    where = f"within {printable(member.name)[:100]}, whose header is at byte {member.offset}"
                    raise Rejected("truncated", f"cut off at byte {size}, {where}")
                plain = member.isreg() and not member.issparse()
                yield Member(printable(member.name), member.offset_data, member.size, plain)
            end = tar.offset
    except Rejected:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        where = f"no readable tar header at or after byte {max(0, file.tell() - _BLOCK) // _BLOCK * _BLOCK}"
        raise Rejected("truncated" if file.tell() >= size else "unreadable", f"{where}: {error}"[:200]) from None
    _check_end(file, end, size)


class _Headers:
    """The file as the library sees it: a header that claims to be long does not make it read as much."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise Rejected("unreadable", f"a header before byte {self.tell()} claims {size} bytes for itself")
        return self._file.read(size)


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept otherwise
        yield member


def _check_end(file: BinaryIO, offset: int, size: int) -> None:
    """The library takes any broken header for the end; a true end is a block of zeros, with nothing but zeros after."""
    if offset + _BLOCK > size:
        raise Rejected("truncated", f"ends at byte {size} without an end mark; members may be missing")
    file.seek(offset)
    if any(file.read(_BLOCK)):
        raise Rejected("unreadable", f"damaged header at byte {offset}; what follows is lost")
    if any(file.read(_PADDING)):
        raise Rejected("unreadable", f"the end mark at byte {offset} is followed by more data, which is not read")
