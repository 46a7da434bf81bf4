"""Files of a collection, in a folder here or behind a URI: listed folder by folder, read in ranges. No Ray here."""

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow.fs as arrow

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
    pass
    pass

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


_OF_ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs")
_READ_AHEAD = 2**16  # bytes; a request costs more than these do
_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) on every node, and for other regions or "
    "servers append ?region=... or ?endpoint_override=... to the URI",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS on every node, or for public buckets write gs://anonymous@bucket/path",
    "hdfs": "every node needs Java and the Hadoop client: JAVA_HOME, HADOOP_HOME, CLASSPATH=$(hadoop classpath --glob)",
}
_ADVICE |= {"gcs": _ADVICE["gs"], "viewfs": _ADVICE["hdfs"]}


class RemoteStorage(Storage):
    """A folder or key prefix behind a URI. Connections are made on first use, once a process."""

    @property
    def name(self) -> str:
        parts = urlsplit(self.uri)
        return printable((parts.netloc + parts.path).rstrip("/").rpartition("/")[2])

    def listing(self, folder: str = "") -> Listing:
        files, root = _connection(self.uri)
        try:
            found = files.get_file_info(arrow.FileSelector(joined(root, folder) if folder else root))
        except UnicodeError:
            raise OSError("it holds a name that is not valid UTF-8") from None
        except Exception as error:  # modules behind fsspec raise what they like
            raise _as_os_error(error) from None
        # Some object stores list a key that ends in a slash, a folder's placeholder, as a nameless file.
        kept = {info.base_name: info for info in found if info.type != arrow.FileType.Directory and info.base_name}
        folders = tuple(info.base_name for info in found if info.type == arrow.FileType.Directory and info.base_name)
        return Listing(folder, kept, folders)

    def describe(self, listing: Listing, name: str) -> Stored:
        info = listing.files[name]
        problem = None if info.type == arrow.FileType.File else "not a regular file"
        mark = "" if info.mtime_ns is None else str(info.mtime_ns)
        return Stored(printable(joined(listing.folder, name)), info.size or 0, mark, problem, listing)

    def open(self, path: str) -> BinaryIO:
        files, root = _connection(self.uri)
        try:
            return cast(BinaryIO, io.BufferedReader(files.open_input_file(joined(root, path)), _READ_AHEAD))
        except Exception as error:
            raise _as_os_error(error) from None

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        files, root = _connection(self.uri)
        try:
            with files.open_input_file(joined(root, path)) as file:
                length = max(0, file.size() - offset) if size is None else size
                return bytes(file.read_at(length, offset))
        except Exception as error:
            raise _as_os_error(error) from None

    def exists(self, path: str) -> bool:
        files, root = _connection(self.uri)
        try:
            return bool(files.get_file_info(joined(root, path)).type != arrow.FileType.NotFound)
        except Exception as error:
            raise _as_os_error(error) from None


@lru_cache(maxsize=32)
def _connection(uri: str) -> tuple[arrow.FileSystem, str]:
    """The file system behind a URI and the path in it.

    Raises:
        SourceError: it cannot be reached from this machine, with what to do about it.
    """
    scheme = urlsplit(uri).scheme
    try:
        if scheme in _OF_ARROW:
            files, root = arrow.FileSystem.from_uri(uri)
        else:
            handled, root = fsspec.core.url_to_fs(uri)
            files = arrow.PyFileSystem(arrow.FSSpecHandler(handled))
    except ImportError as error:
        raise SourceError(f"source: {scheme}:// needs a module that is not installed here: {reason(error)}; install it "
                          "on every node") from None  # fmt: skip
    except ValueError as error:
        known = f"a path, file://, {'://, '.join(_OF_ARROW)}://, and every scheme that fsspec has a module for"
        raise SourceError(f"source: cannot open {uri}: {reason(error)}; possible are {known}") from None
    except Exception as error:
        advice = _ADVICE.get(scheme, f"see the documentation of fsspec's {scheme} module for credentials")
        raise SourceError(f"source: cannot open {uri}: {reason(error)}; {advice}") from None
    return files, root.rstrip("/") if root != "/" else root


def _as_os_error(error: Exception) -> Exception:
    return error if isinstance(error, (OSError, SourceError)) else OSError(reason(error))
