"""What FireWorks' pages get instead of the LaunchPad: the same answers, quickly, and nothing that could change it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dftfactory.webgui.snapshot import Snapshot

if TYPE_CHECKING:
    from fireworks import LaunchPad

# One request asks the same up to eighteen times.
_KEEP_SECONDS = 5.0
_KEEP_NUMBER = 50
# By these keys and no other the pages sort.
SORTING_KEYS = ("_id", "created_on", "updated_on")


class StockReader:
    """Takes the place of `app.lp`: the few methods of a LaunchPad that FireWorks' pages use, all of them reading."""

    def __init__(self, launchpad: LaunchPad) -> None:
        self.fireworks = StockCollection(launchpad.fireworks)
        self.workflows = StockCollection(launchpad.workflows)
        # FWReport takes its collections from here.
        self.db = {"fireworks": self.fireworks, "workflows": self.workflows, "launches": launchpad.launches}
        self.get_fw_dict_by_id: Callable[[int], dict[str, Any]] = launchpad.get_fw_dict_by_id
        self.get_wf_summary_dict: Callable[..., dict[str, Any]] = launchpad.get_wf_summary_dict

    def get_fw_ids(self, query: dict[str, Any], *, count_only: bool) -> int:
        """Return a number of Fireworks; with `count_only` only, as the pages ask."""
        return self.fireworks.count(query)

    def get_wf_ids(self, query: dict[str, Any], *, count_only: bool) -> int:
        """Return a number of workflows."""
        return self.workflows.count(query)

    def warm_up(self) -> None:
        """Read what the first page needs."""
        for collection in (self.fireworks, self.workflows):
            collection.snapshot.rows()


class StockCollection:
    """One collection: counted, sorted and searched as FireWorks' pages do."""

    def __init__(self, collection: Any) -> None:
        self.snapshot = Snapshot(collection)
        self.index_information = collection.index_information
        self.find_one = collection.find_one
        self._collection = collection
        self._kept: dict[str, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def count(self, query: dict[str, Any]) -> int:
        """Return how many documents match."""
        state, others = _split(query)
        if not others and (number := self.snapshot.count(state)) is not None:
            return number
        # All states in one go: each of them is asked for.
        groups = self._once(
            ["count", others],
            lambda: list(
                self._collection.aggregate(
                    [{"$match": _joined(others)}, {"$group": {"_id": "$state", "number": {"$sum": 1}}}]
                )
            ),
        )
        return sum(group["number"] for group in groups if state in (None, group["_id"]))

    def find(
        self,
        query: dict[str, Any],
        projection: Any = None,
        *,
        limit: int = 0,
        sort: list[tuple[str, int]] | None = None,
    ) -> Any:
        """Return documents; those of a state, or all of them, are sorted in memory."""
        state, others = _split(query)
        if isinstance(projection, dict) and limit == 0:
            # The ids for a filter of the other collection.
            return self._once(["ids", query, projection], lambda: list(self._collection.find(query, projection)))
        if not others and (rows := self.snapshot.rows()) is not None:
            found = [row for row in rows.values() if state in (None, row.state)]
            cursor = _SortedRows(found, lambda ids: self._collection.find({"_id": {"$in": ids}}, projection))
        else:
            cursor = self._collection.find(
                _joined([*([] if state is None else [{"state": state}]), *others]), projection
            )
        if sort is not None:
            cursor = cursor.sort(sort)
        return cursor.limit(limit)

    def aggregate(self, pipeline: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Return what FWReport asks for, its one pipeline: states by the date of the last change."""
        [(field, condition)] = pipeline[0]["$match"].items() if len(pipeline[0]["$match"]) == 1 else [("", {})]
        if field == "updated_on" and set(condition) == {"$gte"}:
            _, _, letters = pipeline[1]["$project"]["date_key"]["$substr"]
            since = condition["$gte"]
            counted = self.snapshot.count_by_date(since if isinstance(since, str) else since.isoformat(), letters)
            if counted is not None:
                return counted
        answer: Iterable[dict[str, Any]] = self._collection.aggregate(pipeline)
        return answer

    def _once(self, question: Any, ask: Callable[[], Any]) -> Any:
        """Return the answer to a question, that of a moment ago where there is one."""
        key = json.dumps(question, default=str)
        with self._lock:
            when, answer = self._kept.get(key, (float("-inf"), None))
        if time.monotonic() - when > _KEEP_SECONDS:
            answer = ask()
            with self._lock:
                if len(self._kept) >= _KEEP_NUMBER:
                    self._kept.clear()
                self._kept[key] = (time.monotonic(), answer)
        return answer


class _SortedRows:
    """A cursor over rows in memory, whose documents are fetched when it is gone through: one page of them."""

    def __init__(self, rows: list[Any], fetch: Callable[[list[Any]], Iterable[dict[str, Any]]]) -> None:
        self._rows = rows
        self._fetch = fetch

    def sort(self, keys: list[tuple[str, int]]) -> _SortedRows:
        [(key, order)] = keys
        name = "id" if key == "_id" else key
        self._rows.sort(key=lambda row: getattr(row, name), reverse=order < 0)
        return self

    def skip(self, number: int) -> _SortedRows:
        self._rows = self._rows[number:]
        return self

    def limit(self, number: int) -> _SortedRows:
        self._rows = self._rows[: number or None]
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ids = [row.id for row in self._rows]
        documents = {document["_id"]: document for document in self._fetch(ids)}
        # One that was taken away a moment ago is not there.
        return (documents[document_id] for document_id in ids if document_id in documents)


def _split(query: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
    """Return the state that a query asks for, and its other conditions; the pages join all of them with $and."""
    parts = query["$and"] if set(query) == {"$and"} else [query]
    state, others = None, []
    for part in parts:
        if set(part) == {"state"} and isinstance(part["state"], str) and state is None:
            state = part["state"]
        elif part:
            others.append(part)
    return state, others


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    if len(parts) < 2:
        return parts[0] if parts else {}
    return {"$and": parts}
