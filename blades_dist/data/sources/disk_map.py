"""A map that may be larger than memory: what joins a listing of images with a large file about them. No Ray here."""

import sqlite3
from collections.abc import Iterator


class DiskMap:
    """Text to text, in a temporary SQLite file of its own that is gone when closed; a few MiB stay in memory.

    The environment variable ``SQLITE_TMPDIR`` says where, if the default has no room (about 150 bytes an item).
    """

    def __init__(self) -> None:
        # An empty name is SQLite's private file on disk. A generator may be closed from another thread than it ran in.
        self._base = sqlite3.connect("", check_same_thread=False)
        self._base.execute("CREATE TABLE items (key TEXT PRIMARY KEY, value TEXT, taken INTEGER) WITHOUT ROWID")

    def add(self, key: str, value: str) -> bool:
        """Whether it was added; False when the key is there already, which then keeps its value."""
        return self._base.execute("INSERT OR IGNORE INTO items VALUES (?, ?, 0)", (key, value)).rowcount == 1

    def get(self, key: str) -> str | None:
        """Value of a key, or None."""
        row = self._base.execute("SELECT value FROM items WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def take(self, key: str) -> tuple[str | None, bool]:
        """Value of a key (None when there is none), and whether this is the first time that the key is taken."""
        row = self._base.execute("SELECT value, taken FROM items WHERE key = ?", (key,)).fetchone()
        if row is None:
            self._base.execute("INSERT INTO items VALUES (?, NULL, 1)", (key,))
            return None, True
        self._base.execute("UPDATE items SET taken = 1 WHERE key = ?", (key,))
        return row[0], not row[1]

    def left(self) -> Iterator[tuple[str, str]]:
        """Keys and values that were added and never taken, by key."""
        yield from self._base.execute("SELECT key, value FROM items WHERE taken = 0 ORDER BY key")

    def close(self) -> None:
        self._base.close()
