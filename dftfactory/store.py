"""The label store: the collection `dft_results` beside the LaunchPad, one document for each fingerprint.

What a million structures need on paper, from measured documents (bytes of BSON; one launch, no start moments):

    atoms               8     100   1,000
    Firework        1,700   6,800  56,000   1,300 + 55 for each atom: how it is computed, and the structure
    workflow          380     380     380
    launch          2,000   2,000   2,000   800 of it the worker's file; one that failed has the history of its failure
    label           2,700  11,700 100,000   1,900 + 98 for each atom, with twelve SCF iterations of 12 each

Size: a million structures of 100 atoms are 21 GB (9 in the LaunchPad, 12 of labels), of 8 atoms 7 GB, before the
server compresses them. In indexes each structure has some 37 entries (FireWorks makes 27, its `_id` included, we 10) of
20 to 60 bytes: about 1.5 GB, which should fit into the memory of the server.
Limit: a document has at most 16 MB. With 5,000 atoms, the most that `check_structure` lets through, a Firework has
0.3 MB and a label 0.5 MB; `submit` sends 200 Fireworks at once, and the driver cuts requests that are too large.
Archive: what is over does not slow down a rocket, which asks by state, but fills indexes and backups. After each
campaign `dftfactory archive` leaves in the LaunchPad what is going on; the labels stay, never to be computed again.
Sharding: by campaign comes first: a LaunchPad database of its own (`name` in my_launchpad.yaml) for what is never
exported together. Within one database `dft_results` is sharded by {fingerprint: 1}: a digest spreads evenly, all our
writes are by fingerprint, and only the shard key can be unique over all shards. The LaunchPad itself stays on one
server: FireWorks wants `fw_id` unique and asks by `state`, which all shards would have to answer.
In our own memory: `submit` and `sync` keep a page of 200 structures, and 16 bytes for each candidate; `export` a page
of 200 labels, and a number of some 70 bytes for each label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dftfactory.errors import LaunchPadAwayError, LaunchPadError
from dftfactory.id_pages import id_pages
from dftfactory.labels import with_campaigns

if TYPE_CHECKING:
    from fireworks import LaunchPad

COLLECTION = "dft_results"
# Labels that `submit --force` has put aside for new ones.
PUT_ASIDE = "dft_results_put_aside"
# Labels that are in memory at once.
_PAGE = 200


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


def to_json(document: Mapping[str, Any]) -> str:
    """Return a document as one line of MongoDB's Extended JSON, with its ids and times."""
    from bson import json_util

    return str(json_util.dumps(document))


def from_json(line: str) -> dict[str, Any]:
    """Read a line of `to_json`."""
    from bson import json_util

    document: dict[str, Any] = json_util.loads(line)
    return document


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
        # In the order of `_id` within each: an export is not sorted in memory.
        self.collection.create_index([("config_hash", 1), ("_id", 1)])
        self.collection.create_index([("campaigns", 1), ("_id", 1)])
        # What `count` needs is in the index, so that MongoDB reads no label for it.
        self.collection.create_index([("level", 1), ("quality", 1)])

    @launchpad_errors()
    def put(self, label: Mapping[str, Any]) -> None:
        """Store a label; storing it again changes nothing, and an exact one replaces a softened one.

        The one that stays belongs to the campaigns of both.
        """
        from pymongo.errors import DuplicateKeyError

        # A Firework of `lpad add` may be the first that this database sees of us, and what follows needs the index:
        # it refuses an insert beside a label that is not to be replaced.
        self.prepare()
        replaceable = "softened" if label["quality"] == "exact" else None
        earlier = self.collection.find_one({"fingerprint": label["fingerprint"]}, {"fingerprint": 1, "campaigns": 1})
        if earlier is not None:
            label = with_campaigns(label, earlier.get("campaigns", ()))
        # Twice: a softened label that another rocket stores in the same moment refuses the first try, and is found by
        # the second.
        for _ in range(2):
            with suppress(DuplicateKeyError):
                self.collection.replace_one(
                    {"fingerprint": label["fingerprint"], "quality": replaceable}, dict(label), upsert=True
                )
                return
        # Another one was there, and stays.
        self.join_campaigns(earlier or {"fingerprint": label["fingerprint"]}, label.get("campaigns", ()))

    def join_campaigns(self, label: Mapping[str, Any], campaigns: Iterable[str]) -> None:
        """Let a stored label belong to more campaigns."""
        for campaign in campaigns:
            if campaign not in label.get("campaigns", ()):
                self.join_campaign(campaign, [label["fingerprint"]])

    @launchpad_errors()
    def join_campaign(self, campaign: str, fingerprints: Iterable[str]) -> None:
        """Let labels belong to one more campaign."""
        for page in id_pages(fingerprints):
            self.collection.update_many({"fingerprint": {"$in": page}}, {"$addToSet": {"campaigns": campaign}})

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
        for page in id_pages(dict.fromkeys(fingerprints)):
            yield from self._read({"fingerprint": {"$in": page}})

    def all(self, config_hash: str | None = None, campaign: str | None = None) -> Iterator[dict[str, Any]]:
        """All labels, or those of one configuration or campaign, oldest first; a page of them is in memory."""
        limits = {"campaigns": campaign, "config_hash": config_hash}
        query = {key: value for key, value in limits.items() if value is not None}
        # Without a size the driver asks for 16 MB at once, which is ten times as much in Python.
        return self._read(query, sort=[("_id", 1)], batch_size=_PAGE)

    @launchpad_errors()
    def fingerprints(self) -> set[str]:
        """Return the fingerprints that have a label."""
        return {label["fingerprint"] for label in self.collection.find({}, {"_id": 0, "fingerprint": 1})}

    @launchpad_errors()
    def count(self, campaign: str | None = None) -> dict[tuple[int, str], int]:
        """Return the number of labels, or of those of one campaign, by (level, quality)."""
        query = {"level": {"$gt": 0}} if campaign is None else {"campaigns": campaign}
        groups = self.collection.aggregate(
            [
                {"$match": query},
                {"$group": {"_id": {"level": "$level", "quality": "$quality"}, "number": {"$sum": 1}}},
            ]
        )
        numbers = {(int(group["_id"]["level"]), str(group["_id"]["quality"])): int(group["number"]) for group in groups}
        if campaign is None:
            # The bulk of all, which the server knows without looking at them.
            numbers[0, "softened"] = self.collection.count_documents({"level": 0, "quality": "softened"})
            numbers[0, "exact"] = self.collection.estimated_document_count() - sum(numbers.values())
        return {kind: number for kind, number in numbers.items() if number > 0}

    def _read(self, query: dict[str, Any], **options: Any) -> Iterator[dict[str, Any]]:
        with launchpad_errors():
            yield from self.collection.find(query, {"_id": 0}, **options)
