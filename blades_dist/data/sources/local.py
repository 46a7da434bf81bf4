"""Storage in a folder of this machine, or of a network file system that looks like one."""

import os
import stat
from typing import BinaryIO

from blades_dist.data.sources.storage import Listing, Storage, Stored, joined, local_path, printable


class LocalStorage(Storage):
    """A folder that every node sees under the same path."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.root = local_path(uri)

    @property
    def name(self) -> str:
        return printable(self.root.resolve().name)

    def listing(self, folder: str = "") -> Listing:
        files: dict[str, None] = {}
        folders = []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    files[entry.name] = None
                elif not entry.is_symlink():
                    folders.append(entry.name)
        return Listing(folder, files, tuple(folders))

    def describe(self, listing: Listing, name: str) -> Stored:
        path = joined(listing.folder, name)
        shown = printable(path)
        try:
            status = (self.root / path).stat()
        except OSError as error:
            return Stored(shown, 0, "", f"cannot be examined: {error.strerror}", listing)
        problem = None if shown == path else "the file's name is not valid UTF-8"
        if not stat.S_ISREG(status.st_mode):
            problem = "not a regular file"  # opening a pipe would wait for ever
        return Stored(shown, status.st_size, str(status.st_mtime_ns), problem, listing)

    def open(self, path: str) -> BinaryIO:
        return (self.root / path).open("rb")

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()
