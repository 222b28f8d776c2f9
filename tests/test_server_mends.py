"""The local server answers as before with its mends, and goes through no collection where an index has the answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from launchpad_fixtures import require_local_server

from dftfactory import server_mends

pytestmark = pytest.mark.mongodb

DOCUMENTS = [
    {
        "_id": n,
        "fw_id": n,
        "state": ("READY", "RUNNING", "COMPLETED")[n % 3],
        "nodes": [n, n + 1],
        **({"category": "large"} if n % 4 == 0 else {}),
        "spec": {"_priority": n % 5, **({"worker": "c"} if n % 2 else {})},
    }
    for n in range(60)
]
NO_WORKER = {"$or": [{"spec.worker": {"$exists": False}}, {"spec.worker": None}, {"spec.worker": "d"}]}
# As FireWorks and findAndModify ask, and what else a query may have beside an operator.
QUERIES: list[dict[str, Any]] = [
    {"state": "READY", **NO_WORKER},
    {**NO_WORKER, "state": "READY", "spec._priority": {"$gt": 2}},
    {"_id": 7, "$and": [{"state": "RUNNING"}]},
    {"_id": 7, "$and": [{"state": "READY"}]},
    {"_id": 99, "$and": [{"state": "READY"}]},
    {"_id": {"$in": [3, 9, 21]}, "$or": [{"state": "READY"}, {"fw_id": 8}]},
    {"_id": {"$gt": 50}, "$and": [{"state": {"$in": ["READY", "COMPLETED"]}}]},
    {"fw_id": 12, "$nor": [{"state": "RUNNING"}]},
    {"fw_id": {"$lt": 9}, "$expr": {"$gt": ["$fw_id", "$spec._priority"]}},
    {"nodes": 5, "$or": [{"state": "READY"}, {"state": "COMPLETED"}]},
    {"nodes": {"$in": [5, 6]}, "$and": [{"fw_id": {"$gte": 5}}]},
    {"category": "large", **NO_WORKER},
    {"category": None, "$or": [{"state": "READY"}]},
    {"category": {"$exists": False}, **NO_WORKER},
    {"state": "READY", "category": "large", "$and": [{"fw_id": {"$gt": 10}}]},
    {"state": {"$ne": "READY"}, **NO_WORKER},
    {"$or": [{"state": "READY"}, {"fw_id": 8}]},
    {"$comment": "all of them"},
]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mended server in this process, on loopback: `indexed` has indices, `plain` has the same and none."""
    require_local_server()
    from pymongo import ASCENDING, DESCENDING, MongoClient
    from secantus import commands, query
    from secantus.server import SecantusDBServer
    from secantus.storage import Storage
    from secantus.transactions import TransactionRegistry

    # Put back afterwards.
    monkeypatch.setattr(commands, "_HANDLERS", dict(commands._HANDLERS))
    monkeypatch.setattr(Storage, "_try_index_id_keys", Storage._try_index_id_keys)
    monkeypatch.setattr(TransactionRegistry, "_prune_retryable_locked", TransactionRegistry._prune_retryable_locked)
    monkeypatch.setattr(query, "_op_matches", query._op_matches)
    server_mends.mend()
    server = SecantusDBServer(host="127.0.0.1", port=0, storage_path=str(tmp_path / "database"))
    server.start()
    client = MongoClient("127.0.0.1", server.port)
    try:
        database = client["test"]
        for name in ("indexed", "plain"):
            database[name].insert_many(DOCUMENTS)
        database["indexed"].create_index("fw_id", unique=True)
        database["indexed"].create_index("state")
        database["indexed"].create_index("nodes")
        database["indexed"].create_index("category", sparse=True)
        database["indexed"].create_index([("state", ASCENDING), ("spec._priority", DESCENDING)])
        yield database
    finally:
        client.close()
        server.stop()


def all_of(collection: Any) -> list[Any]:
    return sorted(collection.find({}), key=lambda document: int(document["_id"]))


def test_queries_have_the_answers_of_a_collection_without_indices(database: Any) -> None:
    indexed, plain = database["indexed"], database["plain"]
    for query in QUERIES:
        expected = sorted(document["_id"] for document in plain.find(query))
        assert sorted(document["_id"] for document in indexed.find(query)) == expected, query
        assert indexed.count_documents(query) == len(expected), query
    assert sum(plain.count_documents(query) > 0 for query in QUERIES) > len(QUERIES) / 2


def test_writes_change_the_same_documents_as_without_indices(database: Any) -> None:
    indexed, plain = database["indexed"], database["plain"]
    for number, query in enumerate(QUERIES):
        change = {"$set": {"changed": number}}
        sort = [("spec._priority", -1), ("_id", 1)]
        assert indexed.find_one_and_update(query, change, sort=sort) == plain.find_one_and_update(
            query, change, sort=sort
        ), query
        counts = [
            collection.update_many(query, {"$inc": {"times": 1}}).modified_count for collection in (indexed, plain)
        ]
        assert counts[0] == counts[1], query
        assert all_of(indexed) == all_of(plain), query
    for query in QUERIES[:12]:
        deleted = [collection.delete_many(query).deleted_count for collection in (indexed, plain)]
        assert deleted[0] == deleted[1], query
        assert all_of(indexed) == all_of(plain), query


def test_checkout_and_find_and_modify_go_through_no_collection(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo.errors import PyMongoError
    from secantus.storage import Storage

    def refuse(self: Any, db: str, collection: str, *more: Any) -> Any:
        raise AssertionError(f"goes through all of {collection}")

    for name in ("_scan_docs", "_scan_docs_natural"):
        assert hasattr(Storage, name)
        monkeypatch.setattr(Storage, name, refuse)
    with pytest.raises(PyMongoError):
        list(database["plain"].find({"state": "READY", **NO_WORKER}))  # the guard works
    indexed = database["indexed"]
    found = indexed.find_one_and_update({"state": "READY", **NO_WORKER}, {"$set": {"state": "RUNNING"}})
    assert found["state"] == "READY"
    assert indexed.find_one_and_update({"fw_id": 12}, {"$set": {"x": 1}})["_id"] == 12
    assert [document["_id"] for document in indexed.find({"_id": 12, "$and": [{"x": 1}]})] == [12]
    assert indexed.find_one_and_delete({"fw_id": 12, "x": 1})["_id"] == 12


def test_values_are_in_a_list_as_without_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    require_local_server()
    from bson import Decimal128, Int64, ObjectId, Regex
    from secantus import query

    now, some_id = datetime(2026, 1, 2), ObjectId()
    values: list[Any] = [
        *(0, 1, 2, -1, Int64(1), 2**40, 1.0, 2.5, float("nan"), Decimal128("1"), True, False, None),
        *("1", "one", "ONE", "", b"1", now, now.replace(tzinfo=timezone.utc), some_id),
        *([], [1], [2, "one"], [[1]], [True], [1.0], [None], {}, {"a": 1}, [{"a": 1}], {"a": [1]}, [1, {"a": 1}]),
    ]
    lists: list[list[Any]] = [
        *([], [1], [Int64(1)], ["one"], [1, "one"], [0], [1.0], [True], [None], [1, None], [float("nan")]),
        *([Decimal128("1")], [now], [some_id], [[1]], [[]], [{"a": 1}], [1, {"a": 1}], [Regex("^O", "i")]),
        *([b"1"], [2**40, 7, 8], list(range(1000)), [*range(1000), 2.5]),
    ]
    questions = [
        {field: {operator: items}} for items in lists for operator in ("$in", "$nin") for field in ("v", "v.0", "v.a")
    ]
    questions += [{"v": {"$not": {"$in": items}}} for items in lists]
    questions += [{"v": {"$elemMatch": {"$in": items}}} for items in lists]
    documents = [{"v": value} for value in values] + [{}]

    def answers() -> list[list[bool]]:
        return [[query.matches(document, question) for document in documents] for question in questions]

    expected = answers()
    assert 0.1 < sum(map(sum, expected)) / sum(map(len, expected)) < 0.9
    monkeypatch.setattr(query, "_op_matches", query._op_matches)
    server_mends.make_long_lists_cheap()
    # Twice: the lists are still those that were asked for last.
    assert answers() == expected
    assert answers() == expected
    same = [query.matches({"v": "ONE"}, {"v": {"$in": ["one"]}}, collation=collation) for collation in collations()]
    assert same == [False, True]


def collations() -> list[Any]:
    from secantus.collation import parse

    return [None, parse({"locale": "en", "strength": 2})]


def test_long_list_of_ids_is_not_gone_through_for_each_document(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from secantus import query

    compared: list[Any] = []
    compare = query._in_candidate_matches

    def count(values: list[Any], item: Any, *arguments: Any, **options: Any) -> Any:
        compared.append(item)
        return compare(values, item, *arguments, **options)

    monkeypatch.setattr(query, "_in_candidate_matches", count)
    collection, ids = database["indexed"], list(range(1000, 19, -1))
    for field, number in (("_id", 40), ("fw_id", 40), ("nodes", 41)):
        compared.clear()
        assert len(list(collection.find({field: {"$in": ids}}))) == number, field
        # Once, on no document, the server looks whether the query is a valid one.
        assert len(compared) <= len(ids), field
        compared.clear()
        [group] = collection.aggregate([{"$match": {field: {"$in": ids}}}, {"$group": {"_id": 0, "n": {"$sum": 1}}}])
        assert group["n"] == number, field
        assert len(compared) <= len(ids), field
    compared.clear()
    assert len(list(collection.find({"fw_id": {"$in": [*ids, 0.5]}}))) == 40
    assert len(compared) > 20 * len(ids)  # where it does compare one by one, this is how many


def test_old_writes_are_forgotten_and_young_ones_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    require_local_server()
    from secantus import transactions
    from secantus.transactions import TransactionRegistry

    monkeypatch.setattr(transactions, "_RETRYABLE_RECORD_MAX", 3)
    monkeypatch.setattr(TransactionRegistry, "_prune_retryable_locked", TransactionRegistry._prune_retryable_locked)
    server_mends.make_retries_cheap()
    now = [1000.0]
    registry = TransactionRegistry(time_func=lambda: now[0])
    for number in range(5):
        registry.record_retryable(b"session", number, b"command", {"ok": 1.0, "n": number})
    # The last three are there; each of them only for the command that it was of.
    assert [bool(registry.retryable_reply(b"session", number, b"command")) for number in range(5)] == [
        *(False, False, True, True, True)
    ]
    assert registry.retryable_reply(b"session", 4, b"command")["n"] == 4
    assert registry.retryable_reply(b"session", 4, b"another command") is None
    now[0] += transactions._RETRYABLE_RECORD_LIFETIME_SECONDS - 1
    registry.record_retryable(b"session", 5, b"command", {"ok": 1.0, "n": 5})
    now[0] += 2
    assert registry.retryable_reply(b"session", 4, b"command") is None
    assert registry.retryable_reply(b"session", 5, b"command")["n"] == 5


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("secantus.storage.Storage", "_try_index_id_keys"),
        ("secantus.transactions.TransactionRegistry", "_prune_retryable_locked"),
        ("secantus.transactions", "_RETRYABLE_RECORD_MAX"),
        ("secantus.query", "_op_matches"),
    ],
)
def test_server_that_is_made_differently_must_not_serve(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_local_server()
    from secantus import commands, query
    from secantus.storage import Storage

    monkeypatch.setattr(commands, "_HANDLERS", dict(commands._HANDLERS))
    monkeypatch.setattr(Storage, "_try_index_id_keys", Storage._try_index_id_keys)
    monkeypatch.setattr(query, "_op_matches", query._op_matches)
    monkeypatch.delattr(f"{module}.{name}")
    with pytest.raises(RuntimeError, match="expected version"):
        server_mends.mend()
