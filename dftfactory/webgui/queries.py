"""Queries that somebody types into FireWorks' home page: only what is harmless reaches the database.

A query of MongoDB can run JavaScript ($where, $function), join and compute without end ($expr), or try patterns that
take for ever ($regex). What is not on the list here is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

MAX_LETTERS = 2000
MAX_DEPTH = 6
MAX_CONDITIONS = 100

# Of whole conditions, and of the values of one key.
_LOGICAL = {"$and", "$or", "$nor"}
_OF_VALUES = {
    *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$all"),
    *("$exists", "$size", "$mod", "$not", "$elemMatch", "$regex", "$options"),
}
# A pattern without repetition or choice is looked for in one go, whatever the text.
_PLAIN_PATTERN = re.compile(r"\^?[\w \-,.:;=@/#%&'\"<>~!]{0,100}\$?", re.ASCII)
# What a number of MongoDB holds.
_INT64 = 2**63


def read_query(text: str) -> tuple[dict[str, Any], str | None]:
    """Return a query that was typed, and None; or an empty one and what is wrong with it, in words for its author."""
    if len(text) > MAX_LETTERS:
        return {}, f"it has more than {MAX_LETTERS} letters"
    try:
        query = json.loads(text)
    except (ValueError, RecursionError):
        return {}, 'it is not JSON: expected something like {"state": "FIZZLED"}, with double quotes'
    problem = problem_of(query)
    return ({}, problem) if problem or not isinstance(query, dict) else (query, None)


def problem_of(query: Any) -> str | None:
    """Return why a query is not passed on, in words; None for a harmless one."""
    if not isinstance(query, dict):
        return 'it is not an object: expected something like {"state": "FIZZLED"}'
    # One item for each condition and value; the check ends with the first problem.
    for number, problem in enumerate(_problems(query, 1), start=1):
        if problem:
            return problem
        if number > MAX_CONDITIONS:
            return f"it has more than {MAX_CONDITIONS} conditions and values"
    return None


def _problems(value: Any, depth: int, *, in_operators: bool = False) -> Iterable[str | None]:
    """Go through all keys and values of a query; None for each that is harmless."""
    if depth > 2 * MAX_DEPTH:  # a condition is two levels: its key, and the operator
        yield f"it is more than {MAX_DEPTH} conditions deep"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield _problem_of_key(key, inner, in_operators=in_operators)
            # Below an operator of values may be operators again ($not, $elemMatch), below $and whole conditions.
            yield from _problems(inner, depth + 1, in_operators=key not in _LOGICAL)
    elif isinstance(value, list):
        yield None
        for item in value:
            yield from _problems(item, depth + 1, in_operators=in_operators)
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        yield "it has a number of more than 18 digits"
    elif isinstance(value, float) and not math.isfinite(value):
        yield "it has a number that is not finite"
    elif isinstance(value, str) and "\0" in value:
        yield "it has a letter that no text of the LaunchPad has"
    else:
        yield None


def _problem_of_key(key: str, value: Any, *, in_operators: bool) -> str | None:
    if not key.startswith("$"):
        odd = not key or "\0" in key or any(not part or part.startswith("$") for part in key.split("."))
        return "it has a key that no document has" if odd else None
    if key not in (_OF_VALUES | _LOGICAL if in_operators else _LOGICAL):
        allowed = ", ".join(sorted((_OF_VALUES | _LOGICAL) - {"$options"}))
        return f"{key[:30]} is not one of the operators that are allowed here: {allowed}"
    if key in _LOGICAL and not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return f"{key} needs a list of conditions"
    if key == "$regex" and not (isinstance(value, str) and _PLAIN_PATTERN.fullmatch(value)):
        return "$regex takes letters, digits and spaces here, . for any letter, ^ at the beginning and $ at the end"
    if key == "$options" and value != "i":
        return "$options can only be i here"
    return None
