"""One label for each fingerprint, the better one, whoever stores it and however often."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from dftfactory.errors import LaunchPadError
from dftfactory.store import COLLECTION, LabelStore

pytestmark = pytest.mark.mongodb


def label(name: str = "dft1", quality: str = "exact", level: int = 0, **more: Any) -> dict[str, Any]:
    return {"fingerprint": name, "quality": quality, "level": level, "config_hash": "cfg1", **more}


@pytest.fixture
def store(launchpad: Any) -> LabelStore:
    return LabelStore(launchpad)


def test_label_comes_back_as_it_was_put(store: LabelStore) -> None:
    put = label(result={"energy": -215.123456789012345, "forces": [[0.1, -1e-17, 1 / 3]]})
    store.put(put)
    assert store.get("dft1") == put
    assert store.get("dft2") is None


def test_same_label_again_changes_nothing(store: LabelStore) -> None:
    """The same fingerprint computed twice: the first number stays, as it may have been used already."""
    store.put(label(calculation_id="first"))
    store.put(label(calculation_id="second"))
    assert [found["calculation_id"] for found in store.all()] == ["first"]


@pytest.mark.parametrize("order", [("softened", "exact"), ("exact", "softened"), ("softened", "exact", "softened")])
def test_exact_label_wins_in_any_order(store: LabelStore, order: tuple[str, ...]) -> None:
    for quality in order:
        store.put(label(quality=quality))
    assert [found["quality"] for found in store.all()] == ["exact"]


def test_second_softened_label_does_not_replace_the_first(store: LabelStore) -> None:
    store.put(label(quality="softened", calculation_id="first"))
    store.put(label(quality="softened", calculation_id="second"))
    assert [found["calculation_id"] for found in store.all()] == ["first"]


def test_threads_that_store_the_same_labels_at_once(store: LabelStore) -> None:
    """Each fingerprint comes from four threads, exact from two of them: one document each, and exact."""
    problems: list[BaseException] = []

    def put_all(number: int) -> None:
        try:
            for n in range(25):
                store.put(label(f"dft{n}", "softened" if (number + n) % 2 else "exact", calculation_id=str(number)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=put_all, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert Counter(found["fingerprint"] for found in store.all()) == {f"dft{n}": 1 for n in range(25)}
    assert {found["quality"] for found in store.all()} == {"exact"}


def test_store_is_safe_without_a_submit_before(store: LabelStore) -> None:
    """After `lpad add` on a new LaunchPad the first of us to write is a rocket, and the index must be there."""
    store.put(label())
    indexes = store.collection.index_information()
    assert indexes["fingerprint_1"]["unique"]
    assert {"config_hash_1__id_1", "campaigns_1__id_1"} <= set(indexes)


def test_labels_of_one_configuration_oldest_first(store: LabelStore) -> None:
    for n, config_hash in enumerate(("cfg1", "cfg2", "cfg1")):
        store.put(label(f"dft{n}", config_hash=config_hash))
    assert [found["fingerprint"] for found in store.all("cfg1")] == ["dft0", "dft2"]
    assert [found["fingerprint"] for found in store.all()] == ["dft0", "dft1", "dft2"]


def test_count_by_level_and_quality(store: LabelStore) -> None:
    assert store.count() == {}
    for n, (level, quality) in enumerate([(0, "exact"), (0, "exact"), (3, "exact"), (3, "softened")]):
        store.put(label(f"dft{n}", quality, level))
    assert store.count() == {(0, "exact"): 2, (3, "exact"): 1, (3, "softened"): 1}


def test_collection_has_the_name_that_users_query(launchpad: Any, store: LabelStore) -> None:
    store.put(label())
    assert COLLECTION == "dft_results"
    assert launchpad.db["dft_results"].count_documents({"fingerprint": "dft1"}) == 1


def test_database_that_goes_away_is_one_readable_error() -> None:
    from pymongo import MongoClient

    class Away:
        db = MongoClient("127.0.0.1", 1, serverSelectionTimeoutMS=100)["fireworks"]

    store = LabelStore(Away())
    for action in (store.prepare, store.count, lambda: store.put(label()), lambda: store.get("dft1")):
        with pytest.raises(LaunchPadError, match=r"127\.0\.0\.1:1.*repeat the command") as raised:
            action()
        assert "\n" not in raised.value.message
        assert len(raised.value.message) < 350
