"""The tables of a report: plain rows of text, which the page escapes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dftfactory.monitor.failed import explanation_of
from dftfactory.report.data_set import OTHERS, DataSet, LabelNumbers
from dftfactory.report.outliers import FEWEST, NAMES, Verdict
from dftfactory.report.picture import in_few_digits

if TYPE_CHECKING:
    from dftfactory.monitor.records import Record

# Rows of a list that a person reads; how many more there are is said.
MOST_ROWS = 200
_RUNGS_NOTE = (
    "Counted once for each label on whose way the rung was used, whether or not it was the one that helped. Rungs of "
    "the machine stay at the level."
)


@dataclass(frozen=True)
class Table:
    """A table; columns whose names stand in `numbers` are aligned to the right.

    `instead` is said where there is no row, `note` below the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[str, ...] = ()
    note: str = ""
    instead: str = "none"


def failures_table(records: Iterable[Record]) -> Table:
    """Why structures failed, what to do, and one of them as an example."""
    failed = [record for record in records if record.state == "FIZZLED"]
    number = Counter(record.failure or "UNKNOWN" for record in failed)
    first: dict[str, Record] = {}
    for record in failed:
        name = record.failure or "UNKNOWN"
        if name not in first or (first[name].explanation is None and record.explanation is not None):
            first[name] = record
    rows = [
        (name, f"{count:,}", one.explanation or explanation_of(name), _example(one))
        for name, count in number.most_common()
        for one in [first[name]]
    ]
    columns = ("failure", "structures", "what it means, what to do", "for example")
    return Table("failures", "What failed, and what to do", columns, rows, ("structures",), instead="Nothing failed.")


def compositions_table(data_set: DataSet) -> Table:
    """Numbers of each row of the pictures."""
    groups = data_set.groups
    members: defaultdict[str, list[LabelNumbers]] = defaultdict(list)
    for label in data_set.labels:
        members[groups.name_of(label)].append(label)
    columns = (groups.by, "labels", "atoms", "energy per atom (eV)", "largest force (eV/Å)", "pressure (GPa)")
    rows = [
        (
            f"{name} ({groups.n_others:,} more)" if name == OTHERS else name,
            f"{len(members[name]):,}",
            _span([label.n_atoms for label in members[name]], "{:,.0f}"),
            _span([label.energy for label in members[name]], "{:.3f}"),
            _span([label.max_force for label in members[name]], "{:.3g}"),
            _span([label.pressure for label in members[name] if label.pressure is not None], "{:.3g}"),
        )
        for name in groups.names
    ]
    note = "Median, and in brackets the smallest and the largest value."
    return Table("compositions", f"Labels by {groups.by}", columns, rows, columns[1:], note, "No labels yet.")


def outliers_table(verdict: Verdict) -> Table:
    """Labels that look odd, and how many could not be judged."""
    rows = [
        (
            one.calculation_id,
            one.formula,
            f"{one.value:.4g} {one.unit}",
            one.reason,
            f"{one.n_judged:,}",
            f"{one.level}",
        )
        for one in verdict.outliers[:MOST_ROWS]
    ]
    columns = ("calculation_id", "composition", "value", "why", "judged by labels", "level")
    judged = [
        f"{NAMES[quantity]} of {number:,}"
        for quantity, number in verdict.not_judged.items()
        if number and quantity in NAMES
    ]
    notes = [f"{len(verdict.outliers) - MOST_ROWS:,} more are not listed."] * (len(verdict.outliers) > MOST_ROWS)
    if judged:
        notes.append(
            f"Not judged, with fewer than {FEWEST} labels or compositions to compare with: {', '.join(judged)}."
        )
    notes.append(
        "An outlier is a reason to look, not an error. Scatter is a robust standard deviation (1.4826 MAD of the side "
        "on which the value lies)."
    )
    instead = "No outliers among the labels that could be judged." if verdict.n_exact else "No labels yet."
    numbers = ("value", "judged by labels", "level")
    return Table(
        "outliers", _title("Outliers", len(verdict.outliers)), columns, rows, numbers, " ".join(notes), instead
    )


def warnings_table(data_set: DataSet) -> Table:
    """Labels that may be in another electronic state than the lowest."""
    warned = [label for label in data_set.labels if label.state_warning is not None]
    rows = [(label.calculation_id, label.formula, f"{label.level}", label.state_warning or "") for label in warned]
    return _listed(
        "warnings", "Perhaps not the lowest electronic state", rows, ("why",), "No label has a state_warning."
    )


def softened_table(data_set: DataSet) -> Table:
    """Labels at more than the prescribed degauss."""
    softened = [label for label in data_set.labels if not label.is_exact]
    rows = [(label.calculation_id, label.formula, f"{label.level}", label.quality) for label in softened]
    table = _listed("softened", "Softened labels", rows, ("quality",), "No label is softened.")
    return Table(
        **{**vars(table), "note": f"At a raised degauss; exported only with --softened. {table.note}" * bool(rows)}
    )


def levels_table(data_set: DataSet) -> Table:
    """Level → what it changes, how many labels it gave, their iterations and cost."""
    from dftfactory.recovery import LADDER

    changes = {0: ("default", "the configuration")}
    for level, entry in enumerate(LADDER, start=1):
        changes[level] = (str(entry["name"]), _changes(entry))
    rows = []
    for level in sorted({*changes, *(label.level for label in data_set.labels)}):
        own = [label for label in data_set.labels if label.level == level]
        exact = sum(label.is_exact for label in own)
        costs = [label.core_seconds for label in own if label.core_seconds is not None]
        atoms = sum(label.n_atoms for label in own if label.core_seconds is not None)
        name, what = changes.get(level, ("of a ladder in dft.yaml", ""))
        rows.append(
            (
                f"{level} {name}",
                what,
                f"{exact:,}",
                f"{len(own) - exact:,}",
                f"{np.median([label.iterations for label in own]):,.0f}" if own else "",
                f"{sum(label.iterations for label in own):,}",
                in_few_digits(sum(costs) / 3600) if costs else "",
                in_few_digits(sum(costs) / len(costs)) if costs else "",
                in_few_digits(sum(costs) / atoms) if costs else "",
            )
        )
    columns = (
        "level",
        "what it changes",
        "exact labels",
        "softened",
        "SCF iterations (median)",
        "SCF iterations (all)",
        "core-hours",
        "core-seconds per label",
        "core-seconds per atom",
    )
    note = (
        "Iterations and cost are those of all attempts of the calculations that ended at this level, failed ones "
        "included. Changes are those of the built-in ladder; dft.yaml may have another one."
    )
    return Table("levels", "Which level gave how many labels", columns, rows, columns[2:], note)


def rungs_table(data_set: DataSet) -> Table:
    """Return the rungs that were used on the way to labels."""
    rows = [
        (failure, rung or failure, f"{number:,}")
        for name, number in data_set.rungs.most_common(MOST_ROWS)
        for failure, _, rung in [name.partition(": ")]
    ]
    columns = ("after", "rung", "labels")
    return Table(
        "rungs", "Rungs on the way to labels", columns, rows, ("labels",), _RUNGS_NOTE, "No label needed a rung."
    )


def configuration_tables(data_set: DataSet) -> list[Table]:
    """One table for each configuration: how its labels are defined, and what made them."""
    tables = []
    for number, (name, used) in enumerate(data_set.configurations.items()):
        rows = [("label parameters", key, _short(value)) for key, value in used.label_parameters.items()]
        rows += [
            ("pseudopotential", element, f"{file} (md5 {md5}), {_labels(count)}")
            for (element, file, md5), count in sorted(used.pseudopotentials.items())
        ]
        made = {"pw.x": used.pw_versions, "read from": used.sources, "dftfactory": used.made_by}
        rows += [("made by", what, _counts(counts)) for what, counts in made.items()]
        title = f"Configuration {name}: {_labels(used.number)}"
        tables.append(Table(f"configuration_{number}", title, ("", "name", "value"), rows))
    return tables


def left_out_table(records: Sequence[Record], data_set: DataSet, campaign: str | None) -> Table:
    """Return what this report does not show, and why."""
    rows = []
    for why, names in data_set.damaged.items():
        example = f"{names[0]}{', ...' if len(names) > 1 else ''}"
        rows.append((_labels(len(names)), f"{why} ({example}); compute it again with `dftfactory submit --force`"))
    if len(data_set.configurations) > 1:
        rows.append(
            (
                "comparison of configurations",
                "labels of different configurations do not fit into one data set: outliers and the fit of the "
                "composition are made for each by itself, the other pictures show all of them",
            )
        )
    linked = sum(record.linked_to is not None for record in records)
    reused = sum(record.reused for record in records)
    if linked or reused:
        rows.append(
            (
                f"{linked + reused:,} COMPLETED structures in cost and levels",
                f"{linked:,} were computed by an equal structure at the same time, {reused:,} found their label there",
            )
        )
    no_cost = sum(record.core_seconds is None and record.state in ("COMPLETED", "FIZZLED") for record in records)
    if no_cost:
        rows.append((f"the cost of {no_cost:,} structures", "their launches have no record of it"))
    rows.append(("archived Fireworks", "they are in files of `dftfactory archive`; their labels are shown"))
    if campaign is not None:
        rows.append(("other campaigns", f"this report was made with --campaign {campaign}"))
    rows.append(("what runs now, and all that came later", "a report does not change; `dftfactory webgui` does"))
    return Table("left_out", "What is not shown, and why", ("what", "why"), rows)


def _example(record: Record) -> str:
    """Return a calculation_id and its reason, which may begin with it."""
    reason = record.reason or ""
    return reason if reason.startswith(record.calculation_id) else f"{record.calculation_id}: {reason}"


def _listed(name: str, title: str, rows: Sequence[tuple[str, ...]], last: tuple[str, ...], instead: str) -> Table:
    more = f"{len(rows) - MOST_ROWS:,} more are not listed." if len(rows) > MOST_ROWS else ""
    columns = ("calculation_id", "composition", "level", *last)
    return Table(name, _title(title, len(rows)), columns, rows[:MOST_ROWS], ("level",), more, instead)


def _changes(entry: Mapping[str, Any]) -> str:
    """Return what a level of the ladder changes, in words."""
    said = [
        f"{key} = {_short(value)}" for key, value in entry.items() if key not in ("name", "anneal", "sooner_with_spin")
    ]
    stages = entry.get("anneal") or ()
    if stages:
        above = ", then ".join(
            f"+ {stage['degauss_above']:g} Ry" if "degauss_above" in stage else "as prescribed" for stage in stages
        )
        said.append(f"degauss {above}, each from the density before")
    return ", ".join(said)


def _span(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    one: Callable[[float], str] = form.format
    low, high = min(values), max(values)
    return one(low) if one(low) == one(high) else f"{one(float(np.median(values)))} ({one(low)} to {one(high)})"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {_labels(number)}" for name, number in counts.most_common(20))


def _title(title: str, number: int) -> str:
    return f"{title}: {number:,}" if number else title


def _labels(number: int) -> str:
    return f"{number:,} label{'' if number == 1 else 's'}"
