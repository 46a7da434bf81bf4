"""Photographs that show the same picture: perceptual hashes, pairs of near ones, and which of them stays. No Ray here.

Pairs are found by bands (locality-sensitive hashing): two hashes are compared when they agree in one of 16 bands of 16
bits, as two that differ in fewer than 16 bits must.
"""

from collections import defaultdict

import cv2
import numpy as np

HASH_BYTES = 32
BANDS = 16
_SIDE = 16  # of the low-frequency block that is kept; its square is the number of bits
_PLANE = 64  # pixels a side of the picture that is transformed
_COMPARED = 4096  # hashes of one band value that are all compared with each other


def perceptual_hash(rgb: np.ndarray) -> bytes:
    """256 bits of an upright photo (H, W, 3) uint8 that re-encoding and resizing hardly change.

    Each bit says whether one of the 16 x 16 lowest frequencies (DCT of the gray picture at 64 x 64) lies above
    their median.
    """
    small = cv2.resize(rgb, (_PLANE, _PLANE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(gray)[:_SIDE, :_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def near_pairs(hashes: np.ndarray, band: int, bits: int) -> np.ndarray:
    """Pairs (E, 2) int64, the smaller index first, of distinct ``hashes`` (U, 32) uint8 that agree in a band and
    differ in fewer than ``bits`` bits. More than 4,096 hashes with one value of a band, which only a degenerate
    collection has, are divided by further bands instead of compared all with all."""
    words = np.ascontiguousarray(hashes).view(np.uint64)
    keys = np.ascontiguousarray(hashes).view(np.uint16)
    found = [np.empty((0, 2), np.int64)]
    pending = [(np.arange(len(hashes)), 0)]
    while pending:
        members, depth = pending.pop()
        for group in _runs(members, keys[members, (band + depth) % BANDS]):
            if len(group) > _COMPARED and depth + 1 < BANDS:
                pending.append((group, depth + 1))
            else:
                found.append(_near(group, words, bits))
    return np.concatenate(found)


def copies(pairs: np.ndarray, rank: np.ndarray) -> dict[int, int]:
    """Which items of near ``pairs`` (E, 2) are dropped, and the kept one each is near to.

    Items are visited by ``rank`` (N,), the smallest first: one that is near to no kept one stays.
    """
    near: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs.tolist():
        near[a].append(b)
        near[b].append(a)
    dropped: dict[int, int] = {}
    for item in sorted(near, key=lambda i: int(rank[i])):
        if item not in dropped:
            for other in near[item]:
                if rank[other] > rank[item]:
                    dropped.setdefault(other, item)
    return dropped


def _runs(members: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Members with equal keys, where there are two or more."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return [group for group in np.split(members[order], cuts) if len(group) > 1]


def _near(group: np.ndarray, words: np.ndarray, bits: int) -> np.ndarray:
    found = [np.empty((0, 2), np.int64)]
    mine = words[group]
    step = max(1, 2**20 // len(group))
    for start in range(0, len(group), step):
        different = np.bitwise_count(mine[start : start + step, None] ^ mine[None]).sum(-1, dtype=np.int64)
        a, b = np.nonzero(different < bits)
        later = b > a + start
        found.append(np.sort(np.stack([group[a[later] + start], group[b[later]]], axis=1), axis=1))
    return np.concatenate(found)
