"""Files of a collection, in a folder here or behind a URI: listed folder by folder, read in ranges. No Ray here."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from blades_dist.data.sources.base import SourceError


@dataclass(frozen=True)
class Listing:
    """What one folder holds: ``files`` by name (the value is the storage's own note), and its ``folders``.

    ``folder`` is relative to the storage's root, with forward slashes; "" is the root.
    """

    folder: str
    files: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """A file: ``path`` from the root in printable text, ``size`` in bytes, ``mark`` changes when it is written to
    ("" where the storage does not tell). ``problem`` says why it is not worth opening. ``listing`` is its folder's."""

    path: str
    size: int
    mark: str
    problem: str | None = None
    listing: Listing = field(default=Listing(""), compare=False, repr=False)


class Storage(ABC):
    """A tree of files below ``uri``. Holds no connection, so an object is cheap to make again in another process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the root's path, in printable text."""

    @abstractmethod
    def listing(self, folder: str = "") -> Listing:
        """One folder's files and folders; links to folders are in neither.

        Raises:
            OSError: it cannot be listed.
        """

    @abstractmethod
    def describe(self, listing: Listing, name: str) -> Stored:
        """A file of a listing; whatever is wrong with it becomes its ``problem``."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """The file for reading and seeking; the caller closes it.

        Raises:
            OSError: it cannot be opened.
        """

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes from ``offset`` on (fewer at the end of the file), or all of the rest.

        Raises:
            OSError: it cannot be read.
        """
        with self.open(path) as file:
            if offset:
                file.seek(offset)
            return file.read(-1 if size is None else size)

    def top(self) -> Listing:
        """The root's listing.

        Raises:
            SourceError: there is no such folder, or it cannot be listed.
        """
        try:
            return self.listing()
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"source: {self.uri} is not a folder; check the path or URI") from None
        except OSError as error:
            raise SourceError(f"source: cannot list {self.uri}: {reason(error)}") from None

    def walk(self, suffixes: tuple[str, ...] = (), folder: str = "") -> Iterator[Stored]:
        """Files below a folder whose names end with one of ``suffixes`` (in any case; none: every file), by path.

        Memory is the listings of the folders on the way down to the current one. A folder that cannot be listed
        comes as an item with a problem, its path ending in a slash.

        Raises:
            SourceError: the storage's root cannot be listed.
        """
        try:
            listing = self.listing(folder) if folder else self.top()
        except OSError as error:
            yield Stored(printable(folder) + "/", 0, "", f"cannot be listed: {reason(error)}")
            return
        # With a slash after folder names, the order within each folder gives the order of whole paths.
        names = [(printable(name), name) for name in listing.files if _ends(name.lower(), suffixes)]
        names += [(printable(name) + "/", name) for name in listing.folders]
        for shown, name in sorted(names):
            if shown.endswith("/"):
                yield from self.walk(suffixes, joined(folder, name))
            else:
                yield self.describe(listing, name)


def open_storage(uri: str) -> Storage:
    """The folder behind a path or URI; nothing is contacted yet."""
    from blades_dist.data.sources.local import LocalStorage  # both build on this module
    from blades_dist.data.sources.remote import RemoteStorage

    return LocalStorage(uri) if is_local(uri) else RemoteStorage(uri)


def open_beside(uri: str) -> tuple[Storage, str]:
    """The folder that holds the file behind a path or URI, and the file's name."""
    plain, question, query = (uri, "", "") if is_local(uri) else uri.partition("?")
    parent, slash, name = plain.rpartition("/")
    return open_storage(
        (parent + ("/" if parent in ("", "file://") else "") if slash else ".") + question + query
    ), name


def below(uri: str, name: str) -> str:
    """Path or URI of a file in the folder behind ``uri``; a URI's query stays at the end."""
    plain, question, query = (uri, "", "") if is_local(uri) else uri.partition("?")
    return f"{plain.rstrip('/')}/{name}{question}{query}"


def is_local(uri: str) -> bool:
    """Whether it is a path, or a file:// URI."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The same for any working directory: local paths made absolute, URIs as they are."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def local_path(uri: str) -> Path:
    """The path that a local path or file:// URI names.

    Raises:
        SourceError: the URI names another host.
    """
    if not uri.startswith("file://"):
        return Path(uri)
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(
            f"source: {uri} names the host {parts.netloc}; a local file is file:///path, with three slashes"
        )
    return Path(unquote(parts.path))


def joined(folder: str, name: str) -> str:
    """``folder/name``, or ``name`` for the root ""."""
    return f"{folder}/{name}" if folder else name


def printable(text: str) -> str:
    """Text that can be written as UTF-8: bytes that are none, and lone surrogates, appear as backslash escapes."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def reason(error: Exception) -> str:
    """What an error says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:300]


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return not suffixes or (name.endswith(suffixes) and name not in suffixes)
