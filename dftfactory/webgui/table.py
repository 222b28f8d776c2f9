"""The table of structures: what the URL asks for, and the rows that answer it.

Everything stands in the URL, so that a table can be sent to a colleague; what cannot be understood in it is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dftfactory.monitor.records import Record

ROWS = 50
# Life of a Firework, for sorting by state and for the order of the progress bar.
STATES = (
    "COMPLETED",
    "FIZZLED",
    "RUNNING",
    "RESERVED",
    "READY",
    "WAITING",
    "PAUSED",
    "DEFUSED",
    "ARCHIVED",
)
# Column → value to sort by, in the order of the table.
COLUMNS: dict[str, Callable[[Record], Any]] = {
    "calculation_id": lambda record: record.calculation_id.lower(),
    "formula": lambda record: record.formula,
    "state": lambda record: STATES.index(record.state) if record.state in STATES else len(STATES),
    "level": lambda record: record.level,
    "failure": lambda record: record.failure,
    "iterations": lambda record: record.iterations,
    "energy": lambda record: record.energy,
    "max_force": lambda record: record.max_force,
    "core_hours": lambda record: record.core_seconds,
    "ended": lambda record: record.ended,
}
# What the user has most likely come for: the last that happened.
DEFAULT_SORT, DEFAULT_ORDER = "ended", "desc"


@dataclass(frozen=True)
class Query:
    """What the URL asks for; empty where it does not limit anything."""

    q: str = ""
    state: str = ""
    level: int | None = None
    quality: str = ""
    failure: str = ""
    campaign: str = ""
    formula: str = ""
    sort: str = DEFAULT_SORT
    order: str = DEFAULT_ORDER
    page: int = 1

    @classmethod
    def from_args(cls, args: Mapping[str, str]) -> Query:
        """Read the parameters of a URL."""
        texts = {
            name: args.get(name, "").strip() for name in ("q", "state", "quality", "failure", "campaign", "formula")
        }
        sort = args.get("sort", "")
        order = args.get("order", "")
        return cls(
            **texts,
            level=_number(args.get("level")),
            sort=sort if sort in COLUMNS else DEFAULT_SORT,
            order=order if order in ("asc", "desc") else DEFAULT_ORDER,
            page=max(1, _number(args.get("page")) or 1),
        )

    def to_args(self, **changes: Any) -> dict[str, Any]:
        """Return the parameters of the URL of this table, or of one that differs in `changes`: without defaults."""
        changed = replace(self, **changes)
        default = Query()
        names = Query.__dataclass_fields__
        return {name: getattr(changed, name) for name in names if getattr(changed, name) != getattr(default, name)}

    def sorted_by(self, column: str) -> dict[str, Any]:
        """Return the parameters behind the head of a column: sorted by it, the other way round when it is already."""
        again = self.sort == column and self.order == "asc"
        return self.to_args(sort=column, order="desc" if again else "asc", page=1)

    @property
    def limits(self) -> bool:
        """Whether something is left out on purpose, the campaign apart."""
        return any((self.q, self.state, self.level is not None, self.quality, self.failure, self.formula))

    def select(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that are asked for, sorted; those without a value in the column come last."""
        found = [record for record in records if self._wants(record)]
        key = COLUMNS[self.sort]
        known = [record for record in found if key(record) is not None]
        unknown = [record for record in found if key(record) is None]
        known.sort(key=lambda record: record.fw_id)
        known.sort(key=key, reverse=self.order == "desc")
        unknown.sort(key=lambda record: record.fw_id)
        return known + unknown

    def _wants(self, record: Record) -> bool:
        if self.state and record.state != self.state:
            return False
        if self.level is not None and record.level != self.level:
            return False
        if self.quality and record.quality != self.quality:
            return False
        if self.failure and record.failure != self.failure:
            return False
        if self.campaign and self.campaign not in record.campaigns:
            return False
        if self.formula and record.formula.lower() != self.formula.lower():
            return False
        return not self.q or _mentions(record, self.q.lower())


@dataclass(frozen=True)
class Page:
    """The rows of one page, and where it stands among the others."""

    rows: Sequence[Record]
    number: int
    last: int
    found: int

    @property
    def first_row(self) -> int:
        """Number of its first row among all that were found, from 1."""
        return (self.number - 1) * ROWS + 1


def page_of(found: Sequence[Record], number: int) -> Page:
    """Return one page; beyond the last one, the last one."""
    last = max(1, -(-len(found) // ROWS))
    number = min(number, last)
    return Page(found[(number - 1) * ROWS : number * ROWS], number, last, len(found))


@dataclass(frozen=True)
class Choices:
    """What there is to choose from, each with its number of structures."""

    states: dict[str, int]
    levels: dict[int, int]
    qualities: dict[str, int]
    failures: dict[str, int]
    formulas: list[str]


def choices_of(records: Sequence[Record]) -> Choices:
    """Return what the fields of the filter offer."""
    states = Counter(record.state for record in records)
    levels = Counter(record.level for record in records if record.level is not None)
    qualities = Counter(record.quality for record in records if record.quality)
    failures = Counter(record.failure for record in records if record.failure)
    formulas = Counter(record.formula for record in records)
    return Choices(
        states={state: states[state] for state in (*STATES, *sorted(set(states) - set(STATES))) if states[state]},
        levels=dict(sorted(levels.items())),
        qualities=dict(sorted(qualities.items())),
        failures=dict(failures.most_common()),
        # More would make the page heavy, and help nobody to choose.
        formulas=[formula for formula, _ in formulas.most_common(100)],
    )


def _mentions(record: Record, text: str) -> bool:
    """Whether the text (lower case) is in the names of a structure, in its failure, or is its number."""
    if record.fingerprint.lower().startswith(text) or str(record.fw_id) == text:
        return True
    places = (record.calculation_id, record.formula, record.failure, record.reason)
    return any(text in place.lower() for place in places if place)


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None
