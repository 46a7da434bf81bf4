"""Large JSON files, one item at a time. No Ray here."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.storage import Storage, below, reason

_CHUNK = 2**14  # bytes; damage is told as precisely as this


def json_items(storage: Storage, name: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON file's outermost object, in the file's order; memory is that of the largest item.

    Raises:
        SourceError: the file is missing, cut off or damaged (with the place), or its outermost value is no object.
    """
    where = below(storage.uri, name)
    try:
        file = storage.open(name)
    except OSError as error:
        raise SourceError(f"source: cannot read {where}: {reason(error)}") from None
    with file:
        counted = _Counted(file)
        if not counted.head.lstrip().startswith(b"{"):
            raise SourceError(f"source: {where} does not hold a JSON object with one member an image")
        key, count = "", 0
        try:
            for key, value in ijson.kvitems(counted, "", use_float=True, buf_size=_CHUNK):
                yield key, value
                count += 1
        except (ijson.JSONError, UnicodeError) as error:
            place = f"between bytes {max(0, counted.count - _CHUNK)} and {counted.count}"
            after = f"after {count} items, the last {key!r}" if count else "before the first item ended"
            raise SourceError(f"source: {where} is damaged or cut off {place}, {after} ({reason(error)}); "
                              "get the file again") from None  # fmt: skip
        except OSError as error:
            raise SourceError(f"source: {where} cannot be read after byte {counted.count}: {reason(error)}") from None


class _Counted:
    """A file that was looked at once and counts what it gives; what the parser needs of one is ``read``."""

    def __init__(self, file: BinaryIO) -> None:
        self.head = file.read(_CHUNK)
        self.count = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # the parser asks so for the type
            return b""
        data, self.head = self.head or self._file.read(size), b""
        self.count += len(data)
        return data
