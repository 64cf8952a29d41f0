"""What a recommender learns from: who took which item when, as histories and the item that came next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

LENGTH = 20
"""Items of a history; those before are forgotten."""


class Events(NamedTuple):
    """Histories (events, LENGTH), the latest item last, and targets (events,); the number of items stands for none."""

    histories: np.ndarray
    targets: np.ndarray

    def take(self, rows: np.ndarray) -> Events:
        return Events(self.histories[rows], self.targets[rows])


class Parts(NamedTuple):
    """Events in the order of time: the first to learn from, the next to choose by, the last to report."""

    items: int
    train: Events
    validation: Events
    test: Events


def read_ratings(path: Path, scored: int) -> Parts:
    """Read users, items, ratings and times from a table with tabs; all ratings count as choices.

    One moment parts learning from choosing, and another that from reporting, for all users alike, so that nothing
    learned comes from later than what is predicted; a history is all that its user took before. Times are seconds, and
    a user rates several films in one: those stay in the order of the file.
    """
    table = np.loadtxt(path, skiprows=1, usecols=(0, 1, 3), dtype=np.int64, delimiter="\t")
    users, items, times = table.T
    _, items = np.unique(items, return_inverse=True)
    order = np.argsort(times, kind="stable")
    return _parted(users[order], items[order], scored)


def read_words(path: Path, scored: int) -> Parts:
    """Read texts as one user each who takes a word after the other: items by the ten thousand.

    A word that occurs once only is none.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} must hold texts, files that end in .txt; there are none")
    texts = [re.findall(r"[a-z']+", file.read_text(encoding="utf-8", errors="replace").lower()) for file in files]
    _, numbers, counts = np.unique(np.concatenate(texts), return_inverse=True, return_counts=True)
    kept = counts > 1
    items = (np.cumsum(kept) - 1)[numbers]
    users = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    within = np.concatenate([np.arange(len(text)) / len(text) for text in texts])
    order = np.argsort(within, kind="stable")  # the last tenth of every text is held out
    order = order[kept[numbers[order]]]
    return _parted(users[order], items[order], scored)


def _parted(users: np.ndarray, items: np.ndarray, scored: int) -> Parts:
    """Cut events that are in the order of time after eight and nine tenths; of the last parts keep some, evenly."""
    count = int(items.max()) + 1
    events = Events(_histories(users, items, count), items.astype(np.int32))
    rows = np.split(np.arange(len(items)), [8 * len(items) // 10, 9 * len(items) // 10])
    rows[1:] = [part[np.arange(0, len(part), -(-len(part) // scored))] for part in rows[1:]]
    return Parts(count, *(events.take(part) for part in rows))


def _histories(users: np.ndarray, items: np.ndarray, none: int) -> np.ndarray:
    """Return the last items that each event's user took before it, (events, LENGTH)."""
    by_user = np.argsort(users, kind="stable")
    _, first = np.unique(users[by_user], return_index=True)
    taken = np.arange(len(users)) - np.repeat(first, np.diff([*first, len(users)]))
    back = np.arange(LENGTH, 0, -1)
    place = np.arange(len(users))[:, None] - back
    rows = np.where(taken[:, None] >= back, items[by_user][np.maximum(place, 0)], none)
    histories = np.empty((len(users), LENGTH), np.int32)
    histories[by_user] = rows
    return histories
