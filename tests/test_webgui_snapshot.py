"""What the web GUI keeps in memory of a collection: read once, afterwards only what has changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from dftfactory.webgui.snapshot import Snapshot


class Documents(list[dict[str, Any]]):
    """A collection, with the queries that it was asked."""

    asked: list[Any]

    def estimated_document_count(self) -> int:
        return len(self)

    def find(self, query: dict[str, Any], fields: Any) -> Iterator[dict[str, Any]]:
        self.asked.append(query)
        since = query.get("updated_on", {}).get("$gte")
        since = since.replace(tzinfo=None) if isinstance(since, datetime) else since
        return iter(
            [d for d in self if since is None or (type(d["updated_on"]) is type(since) and d["updated_on"] >= since)]
        )


@pytest.fixture
def documents() -> Documents:
    old = datetime(2026, 1, 1)  # as pymongo reads it
    made = Documents(
        {"_id": n, "state": "READY", "created_on": old.isoformat(), "updated_on": old.isoformat() if n % 2 else old}
        for n in range(10)
    )
    made.asked = []
    return made


def test_snapshot_asks_only_for_what_has_changed(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """FireWorks dates some changes with text, some with dates."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    snapshot = Snapshot(documents)
    assert snapshot.count("READY") == 10
    assert documents.asked == [{}]
    new = datetime.now(timezone.utc).replace(tzinfo=None)
    documents[0].update(state="RUNNING", updated_on=new)
    documents[1].update(state="RUNNING", updated_on=new.isoformat())
    assert snapshot.count("RUNNING") == 0  # a moment old
    now[0] += 3
    assert snapshot.count("RUNNING") == 2
    assert len(documents.asked) == 3
    assert {} not in documents.asked[1:]


def test_snapshot_notices_what_is_taken_away_and_what_nobody_dated(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    snapshot = Snapshot(documents)
    assert snapshot.count(None) == 10
    documents.pop()
    documents[0]["state"] = "DEFUSED"
    now[0] += 3
    assert snapshot.count(None) == 9
    documents[1]["state"] = "DEFUSED"
    now[0] += 61
    assert snapshot.count("DEFUSED") == 1  # no page waits for it
    assert snapshot.reading is not None
    snapshot.reading.join()
    assert snapshot.count("DEFUSED") == 2


def test_snapshot_of_a_large_collection_is_not_kept(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dftfactory.webgui.snapshot.MOST", 5)
    assert Snapshot(documents).rows() is None
    assert documents.asked == []
