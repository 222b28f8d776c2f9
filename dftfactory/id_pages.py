"""Many ids, in pages of what one query may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
# A request has at most 16 MB, and what is yielded page by page is in memory as one.
IDS_IN_ONE_QUERY = 1000


def id_pages(ids: Iterable[T]) -> Iterator[list[T]]:
    """Yield the ids in lists that are short enough for a `$in`; without ids there is none."""
    left = iter(ids)
    while page := list(islice(left, IDS_IN_ONE_QUERY)):
        yield page
