"""Queries that somebody types: harmless ones pass, all others are refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dftfactory.webgui.queries import MAX_LETTERS, problem_of, read_query


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"state": "FIZZLED"},
        {"fw_id": {"$gte": 3, "$lt": 7}},
        {"$or": [{"name": {"$regex": "^Si8 ", "$options": "i"}}, {"spec.campaigns": {"$in": ["a", "b"]}}]},
        {"launches": {"$not": {"$size": 0}}, "spec.resources": {"$exists": True}},
        {"spec.structure": {"$elemMatch": {"symbol": "Si", "x": {"$gt": 0.5}}}},
    ],
)
def test_harmless_query_is_passed_on(query: Any) -> None:
    assert read_query(json.dumps(query)) == (query, None)


@pytest.mark.parametrize(
    "query",
    [
        {"$where": "while (true) {}"},
        {"$and": [{"a": 1}, {"$or": [{"$where": "1"}]}]},
        {"$expr": {"$function": {"body": "f", "args": [], "lang": "js"}}},
        {"a": {"$not": {"$where": "1"}}},
        {"a": {"$accumulator": {}}},
        {"a": {"$in": [{"$where": "1"}]}},
        {"a": {"$elemMatch": {"$where": "1"}}},
        {"$text": {"$search": "x"}},
        {"$jsonSchema": {}},
        {"$comment": "x"},
        {"a.$where": 1},
        {"name": {"$regex": "(a+)+$"}},
        {"name": {"$regex": ".*.*.*x"}},
        {"name": {"$regex": "a|b"}},
        {"name": {"$regex": "x", "$options": "x"}},
        {"name": {"$regex": {"a": 1}}},
        {"fw_id": 2**63},
        {"fw_id": float("inf")},
        {"fw_id": float("nan")},
        {"a\0b": 1},
        {"a": "b\0"},
        {"": 1},
        {"$and": []},
        {"$and": [1]},
        {"$and": {"a": 1}},
        {"a": {"$in": list(range(200))}},
        [],
        "text",
        3,
        None,
    ],
)
def test_query_that_can_do_harm_is_refused(query: Any) -> None:
    read, problem = read_query(json.dumps(query))
    assert read == {}
    assert problem
    assert problem_of(query)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 1500, '{"a":' * 300, '{"a": "' + "x" * MAX_LETTERS + '"}'])
def test_text_that_is_no_query_is_refused(text: str) -> None:
    assert read_query(text)[1]


def test_deep_query_is_refused() -> None:
    query: Any = {"a": 1}
    for _ in range(20):
        query = {"$and": [query]}
    assert "deep" in str(problem_of(query))
