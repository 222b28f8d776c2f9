"""The label store: the collection `dft_results` beside the LaunchPad, one document for each fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dftfactory.errors import LaunchPadAwayError, LaunchPadError

if TYPE_CHECKING:
    from fireworks import LaunchPad

COLLECTION = "dft_results"
# Labels that `submit --force` has put aside for new ones.
PUT_ASIDE = "dft_results_put_aside"


@contextmanager
def launchpad_errors() -> Iterator[None]:
    """Turn what the database's driver raises, while we use an open LaunchPad, into our own error."""
    from pymongo.errors import ConnectionFailure, PyMongoError

    try:
        yield
    except PyMongoError as error:
        # pymongo appends a description of all servers, a screen long.
        said = " ".join(str(error).split())[:150]
        raise (LaunchPadAwayError if isinstance(error, ConnectionFailure) else LaunchPadError)(
            f"the LaunchPad failed in the middle ({type(error).__name__}: {said}); what was done stays done, "
            "repeat the command when the database is back"
        ) from error


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Give up after so many seconds, whatever the LaunchPad's own settings say."""
    import pymongo

    with pymongo.timeout(seconds):
        yield


def insert_new(collection: Any, document: dict[str, Any]) -> bool:
    """Insert a document, in one step; False where one with its `_id` is there."""
    from pymongo.errors import DuplicateKeyError

    try:
        collection.insert_one(document)
    except DuplicateKeyError:
        return False
    return True


class LabelStore:
    """Labels in the database of a LaunchPad.

    Parameters
    ----------
    launchpad
        The FireWorks LaunchPad whose database holds the labels.

    Raises
    ------
    LaunchPadError
        From every method: the database does not answer or refuses.
    """

    def __init__(self, launchpad: LaunchPad) -> None:
        self.collection = launchpad.db[COLLECTION]
        self.put_aside = launchpad.db[PUT_ASIDE]

    @launchpad_errors()
    def prepare(self) -> None:
        """Create the indexes that our queries use; `fingerprint` is unique, so that no label is stored twice."""
        self.collection.create_index("fingerprint", unique=True)
        self.collection.create_index("config_hash")

    @launchpad_errors()
    def put(self, label: Mapping[str, Any]) -> None:
        """Store a label; storing it again changes nothing, and an exact one replaces a softened one."""
        from pymongo.errors import DuplicateKeyError

        # A Firework of `lpad add` may be the first that this database sees of us, and what follows needs the index:
        # it refuses an insert beside a label that is not to be replaced.
        self.prepare()
        replaceable = "softened" if label["quality"] == "exact" else None
        # Twice: a softened label that another rocket stores in the same moment refuses the first try, and is found by
        # the second.
        for _ in range(2):
            with suppress(DuplicateKeyError):
                self.collection.replace_one(
                    {"fingerprint": label["fingerprint"], "quality": replaceable}, dict(label), upsert=True
                )
                return

    @launchpad_errors()
    def set_aside(self, fingerprints: Iterable[str]) -> None:
        """Keep labels under another name, so that the fingerprints have none; safe to repeat."""
        for label in self.collection.find({"fingerprint": {"$in": list(fingerprints)}}):
            self.put_aside.replace_one({"_id": label["_id"]}, label, upsert=True)
            self.collection.delete_one({"_id": label["_id"]})

    def get(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the label of a fingerprint, None where there is none."""
        return next(self.find([fingerprint]), None)

    def find(self, fingerprints: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Labels of the fingerprints that have one, in no order."""
        return self._read({"fingerprint": {"$in": list(fingerprints)}})

    def all(self, config_hash: str | None = None) -> Iterator[dict[str, Any]]:
        """All labels, or those of one configuration, oldest first."""
        return self._read({} if config_hash is None else {"config_hash": config_hash}, sort=[("_id", 1)])

    @launchpad_errors()
    def fingerprints(self) -> set[str]:
        """Return the fingerprints that have a label."""
        return {label["fingerprint"] for label in self.collection.find({}, {"_id": 0, "fingerprint": 1})}

    @launchpad_errors()
    def count(self) -> dict[tuple[int, str], int]:
        """Return the number of labels by (level, quality)."""
        groups = self.collection.aggregate(
            [{"$group": {"_id": {"level": "$level", "quality": "$quality"}, "number": {"$sum": 1}}}]
        )
        return {(int(group["_id"]["level"]), str(group["_id"]["quality"])): int(group["number"]) for group in groups}

    def _read(self, query: dict[str, Any], **options: Any) -> Iterator[dict[str, Any]]:
        with launchpad_errors():
            yield from self.collection.find(query, {"_id": 0}, **options)
