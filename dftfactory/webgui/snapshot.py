"""States and dates of all documents of a collection, in memory: what FireWorks' pages count and sort by.

They ask the database for each number anew, eighteen times for the home page. The local server reads whole documents
to count, 0.7 s for each question at 10,000 Fireworks; from memory it is milliseconds, and the database is only asked
for what has changed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

# Larger ones are on a MongoDB, which counts in its indexes, and would take more than 50 MB here.
MOST = 100_000
# Seconds for which an answer is good enough, and after which all is read anew: a change that nobody has dated, as some
# commands of FireWorks leave it, and one by a machine whose clock is behind, are seen then.
_FRESH = 2.0
_OLD = 60.0
# By so much clocks may differ.
_MARGIN = timedelta(seconds=30)
_FIELDS = ("state", "created_on", "updated_on")


@dataclass(frozen=True)
class Row:
    """One document; the dates in ISO 8601, as the pages show them."""

    id: Any
    state: str
    created_on: str
    updated_on: str


class Snapshot:
    """The rows of one collection, refreshed when they are asked for; for several threads."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self._rows: dict[Any, Row] = {}
        self._looked = float("-inf")
        self._read: float | None = None
        self.reading: threading.Thread | None = None
        self._known_until = datetime.min
        # FireWorks dates Fireworks with text, defused and paused ones with dates, workflows always with dates.
        self._kinds: set[type] = set()
        self._lock = threading.Lock()

    def rows(self) -> dict[Any, Row] | None:
        """Return the rows by their `_id`; None for a collection that is too large to be kept."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > _FRESH:
                number = self._collection.estimated_document_count()
                if number > MOST:
                    self._rows, self._read = {}, None
                    return None
                until = datetime.now(timezone.utc)
                # The changes first: afterwards the numbers differ only where documents were taken away.
                rows = {} if self._read is None else self._changed(self._known_until - _MARGIN)
                if self._read is None or len(rows) != number:
                    rows, self._read = self._all(), now
                elif now - self._read > _OLD:
                    self._read = now
                    self.reading = threading.Thread(target=self._read_again, daemon=True)
                    self.reading.start()
                self._rows, self._looked, self._known_until = rows, now, until
            return self._rows

    def _read_again(self) -> None:
        """Read all anew while the pages go on with what there is."""
        began = datetime.now(timezone.utc)
        # A database that is away is found out by the next page.
        with contextlib.suppress(Exception):
            rows = self._all()
            with self._lock:
                self._rows, self._known_until = rows, began

    def count(self, state: str | None) -> int | None:
        """Return the number of documents in a state, or of all; None for a collection that is too large."""
        rows = self.rows()
        if rows is None:
            return None
        return len(rows) if state is None else sum(row.state == state for row in rows.values())

    def count_by_date(self, since: str, letters: int) -> list[dict[str, Any]] | None:
        """Return the states of what was updated since a date, by the first letters of the date, newest first.

        All of it: FireWorks' own report looks for dates in text and misses Fireworks that were defused or paused.
        """
        rows = self.rows()
        if rows is None:
            return None
        found: dict[str, Counter[str]] = {}
        for row in rows.values():
            if row.updated_on >= since:
                found.setdefault(row.updated_on[:letters], Counter())[row.state] += 1
        return [
            {"date_key": date, "states": [{"state": state, "count": number} for state, number in states.items()]}
            for date, states in sorted(found.items(), reverse=True)
        ]

    def _all(self) -> dict[Any, Row]:
        return dict(self._read_rows({}))

    def _changed(self, since: datetime) -> dict[Any, Row]:
        rows = dict(self._rows)
        for moment in (since, since.replace(tzinfo=None).isoformat()):
            # The local server reads the whole collection where an index has no value of the kind.
            if type(moment) in self._kinds:
                rows.update(self._read_rows({"updated_on": {"$gte": moment}}))
        return rows

    def _read_rows(self, query: dict[str, Any]) -> Iterator[tuple[Any, Row]]:
        for document in self._collection.find(query, dict.fromkeys(_FIELDS, 1)):
            self._kinds.add(type(document.get("updated_on")))
            dates = (_text(document.get("created_on")), _text(document.get("updated_on")))
            yield document["_id"], Row(document["_id"], str(document.get("state", "")), *dates)


def _text(date: Any) -> str:
    return date.isoformat() if isinstance(date, datetime) else str(date or "")
