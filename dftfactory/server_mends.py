"""What SecantusDB lacks to carry a LaunchPad: an atomic findAndModify, and speed with thousands of Fireworks.

Each mend reaches into the server's own modules, of the one version that is pinned.
"""

from __future__ import annotations

import threading
from typing import Any

# A test holds it equal to the pin in setup.cfg.
SECANTUS_VERSION = "0.7.0b3"


def mend() -> None:
    """Do it all; call it before the server starts.

    Raises
    ------
    RuntimeError
        The installed SecantusDB is not made as the pinned one: it must not serve.
    """
    make_find_and_modify_atomic()
    use_indices_beside_operators()
    make_long_lists_cheap()
    make_retries_cheap()


def make_find_and_modify_atomic() -> None:
    """Let the server run one findAndModify at a time.

    FireWorks draws its ids, and checks out work, with findAndModify. The server's own returns the document as it was
    before somebody else's change when two clients ask at once: Fireworks lose their ids and overwrite each other.

    Raises
    ------
    RuntimeError
        The installed SecantusDB has no such handlers: without the lock it must not serve.
    """
    from secantus import commands

    lock = threading.Lock()

    def one_at_a_time(handler: Any) -> Any:
        def locked_handler(*args: Any) -> Any:
            with lock:
                return handler(*args)

        return locked_handler

    for command in ("findAndModify", "findandmodify"):
        handler = commands._HANDLERS.get(command)
        if handler is None:
            raise RuntimeError(f"SecantusDB has no handler {command}: expected version {SECANTUS_VERSION}")
        commands._HANDLERS[command] = one_at_a_time(handler)


def use_indices_beside_operators() -> None:
    """Let a query with `$or` or `$and` use the indices of what else it asks for.

    The server goes through the whole collection for such a query. All checkouts of FireWorks are of that kind, and so
    is the second half of each findAndModify, which asks for the `_id` that it has found `$and` for what it was given.
    At 10,000 Fireworks the end of a launch took 0.5 s for it, instead of 0.03 s.

    Raises
    ------
    RuntimeError
        The installed SecantusDB looks into its indices in another way.
    """
    from secantus.storage import Storage

    look_up = getattr(Storage, "_try_index_id_keys", None)
    if look_up is None:
        raise RuntimeError(f"SecantusDB looks up no query in its indices: expected version {SECANTUS_VERSION}")

    def look_up_the_rest(self: Any, db: str, collection: str, query: dict[str, Any], **options: Any) -> Any:
        # What it finds may be too much: whoever asks compares each document with the whole query afterwards.
        rest = {field: value for field, value in query.items() if not field.startswith("$")}
        return look_up(self, db, collection, rest, **options)

    Storage._try_index_id_keys = look_up_the_rest


def make_long_lists_cheap() -> None:
    """Let the server look into a long list of numbers or texts (`$in`) as into a set.

    It compares each document with one item after the other: 1,000 documents by their ids took 1 s, 5,000 took 28 s.
    So ask `lpad` with many ids, and FireWorks' web GUI where Fireworks are filtered by what their workflow is.

    Raises
    ------
    RuntimeError
        The installed SecantusDB compares in another way.
    """
    from bson.int64 import Int64
    from secantus import query

    compare = getattr(query, "_op_matches", None)
    if compare is None:
        raise RuntimeError(f"SecantusDB compares no values with operators: expected version {SECANTUS_VERSION}")
    # Their equality is Python's, without exception.
    plain = {int, str, Int64}
    # The list of the query that this thread goes through documents with, and its items where all of them are plain.
    last = threading.local()

    def compare_with_set(
        values: list[Any], operator: str, argument: Any, collation: Any = None, *, descend: bool = True, **options: Any
    ) -> Any:
        if operator == "$in" and collation is None and descend and isinstance(argument, list):
            if getattr(last, "argument", None) is not argument:
                last.argument = argument
                last.items = frozenset(argument) if all(type(item) in plain for item in argument) else None
            # The items of a list, each, as MongoDB does it.
            found = [item for value in values for item in (value if type(value) is list else [value])]
            if last.items is not None and all(type(item) in plain for item in found):
                return any(item in last.items for item in found)
        return compare(values, operator, argument, collation, descend=descend, **options)

    query._op_matches = compare_with_set


def make_retries_cheap() -> None:
    """Let the server forget the writes that nobody repeats any more one by one.

    It keeps the replies of the last 10,000 writes of half an hour, for drivers that send a write once more after the
    network was away. Its own way to find the oldest ones goes through all of them, twice for each write, and sorts
    them when they are 10,000: then a write takes 5 ms more.

    Raises
    ------
    RuntimeError
        The installed SecantusDB keeps them in another way.
    """
    from secantus import transactions

    lifetime: float | None = getattr(transactions, "_RETRYABLE_RECORD_LIFETIME_SECONDS", None)
    most: int | None = getattr(transactions, "_RETRYABLE_RECORD_MAX", None)
    registry = transactions.TransactionRegistry
    if lifetime is None or most is None or not hasattr(registry, "_prune_retryable_locked"):
        raise RuntimeError(f"SecantusDB keeps no replies to writes: expected version {SECANTUS_VERSION}")

    def forget_the_oldest(self: Any) -> None:
        # The oldest comes first: the dictionary is in the order in which they were written.
        too_old = self._time() - lifetime
        while self._retryable:
            oldest = next(iter(self._retryable))
            if len(self._retryable) <= most and self._retryable[oldest][1] >= too_old:
                return
            del self._retryable[oldest]

    registry._prune_retryable_locked = forget_the_oldest
