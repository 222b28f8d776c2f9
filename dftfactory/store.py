"""The label store: the collection `dft_results` beside the LaunchPad, one document for each fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dftfactory.errors import LaunchPadError

if TYPE_CHECKING:
    from fireworks import LaunchPad

COLLECTION = "dft_results"


class LabelStore:
    """Labels in the database of a LaunchPad.

    Parameters
    ----------
    launchpad
        The FireWorks LaunchPad whose database holds the labels.
    """

    def __init__(self, launchpad: LaunchPad) -> None:
        self.collection = launchpad.db[COLLECTION]

    def prepare(self) -> None:
        """Create the indexes that our queries use; `fingerprint` is unique, so that no label is stored twice."""
        from pymongo.errors import PyMongoError

        try:
            self.collection.create_index("fingerprint", unique=True)
            self.collection.create_index("config_hash")
        except PyMongoError as error:
            raise LaunchPadError(f"the indexes of {COLLECTION} cannot be created: {error}") from error

    def put(self, label: Mapping[str, Any]) -> None:
        """Store a label; storing it again changes nothing, and an exact one replaces a softened one."""
        name = {"fingerprint": label["fingerprint"]}
        if label["quality"] == "exact":
            self.collection.delete_one({**name, "quality": "softened"})
        self.collection.update_one(name, {"$setOnInsert": dict(label)}, upsert=True)

    def get(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the label of a fingerprint, None where there is none."""
        return next(self.find([fingerprint]), None)

    def find(self, fingerprints: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Labels of the fingerprints that have one, in no order."""
        yield from self.collection.find({"fingerprint": {"$in": list(fingerprints)}}, {"_id": 0})

    def all(self, config_hash: str | None = None) -> Iterator[dict[str, Any]]:
        """All labels, or those of one configuration, oldest first."""
        query = {} if config_hash is None else {"config_hash": config_hash}
        yield from self.collection.find(query, {"_id": 0}).sort("_id", 1)

    def count(self) -> dict[tuple[int, str], int]:
        """Return the number of labels by (level, quality)."""
        counts: dict[tuple[int, str], int] = {}
        for label in self.collection.find({}, {"_id": 0, "level": 1, "quality": 1}):
            key = (int(label["level"]), str(label["quality"]))
            counts[key] = counts.get(key, 0) + 1
        return counts
