"""`dftfactory report`: the factory and its data set as one file that needs nothing else, and as PNG files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftfactory.errors import DFTFactoryError
from dftfactory.history import write_atomically
from dftfactory.monitor.progress import progress_of
from dftfactory.monitor.records import Record, read_records
from dftfactory.report.data_pictures import data_pictures
from dftfactory.report.data_set import DataSet, read_data_set
from dftfactory.report.outliers import Verdict, find_outliers
from dftfactory.report.picture import in_few_digits
from dftfactory.report.pictures import Picture, figure_of, overview
from dftfactory.report.plotly_figures import plotly_js
from dftfactory.report.tables import (
    Table,
    compositions_table,
    configuration_tables,
    failures_table,
    left_out_table,
    levels_table,
    outliers_table,
    rungs_table,
    softened_table,
    warnings_table,
)
from dftfactory.store import LabelStore, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# In the second line of every report: a report may replace such a file, and no other one.
MARK = "<!-- dftfactory report -->"
TEMPLATE = Path(__file__).parent / "page.html"


@dataclass(frozen=True)
class Section:
    """A part of the page: pictures and tables below a heading."""

    name: str
    title: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Report:
    """What is written, and where it is from.

    Attributes
    ----------
    made
        Facts of the report itself: LaunchPad, campaign, time, version.
    headline
        (number, what it counts), the most important ones of all.
    """

    made: dict[str, str]
    headline: list[tuple[str, str]]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in the order of the page."""
        return [picture for section in self.sections for picture in section.pictures]


def write_report(launchpad: LaunchPad, path: Path, campaign: str | None = None, *, png: bool = False) -> list[Path]:
    """Write a report, and return the files: the page first.

    Parameters
    ----------
    launchpad
        Where records and labels come from; nothing is written to it.
    path
        *.html; an earlier report of that name is replaced.
    campaign
        Only the structures and labels of one campaign.
    png
        Also write each picture that shows something into the folder PATH without its suffix + `_png`.

    Raises
    ------
    DFTFactoryError
        The path cannot be written, or is a file that is no report; nothing was written.
    LaunchPadError
        The LaunchPad does not answer.
    """
    path = checked_path(path)
    report = make_report(launchpad, campaign)
    page = to_html(report)
    try:
        write_atomically(path, page)
    except OSError as error:
        raise DFTFactoryError(f"cannot write {path}: {error.strerror}; give another folder, or free space") from error
    if not png:
        return [path]
    from dftfactory.report.png import write_pngs

    return [path, *write_pngs(report.pictures, path.with_name(f"{path.stem}_png"))]


def make_report(launchpad: LaunchPad, campaign: str | None = None) -> Report:
    """Read records and labels, and put the report together; labels are read one at a time."""
    with launchpad_errors():
        records = list(read_records(launchpad, campaign))
        data_set = read_data_set(LabelStore(launchpad).all(campaign=campaign))
    return put_together(records, data_set, address_of(launchpad), campaign)


def put_together(records: Sequence[Record], data_set: DataSet, address: str, campaign: str | None = None) -> Report:
    """Return the report of records and labels."""
    from dftfactory import __version__

    verdict = find_outliers(data_set.labels)
    factory, about_labels = overview(records), data_pictures(data_set)
    costs = tuple(picture for picture in about_labels if picture.name.startswith("cost_"))
    sections = [
        Section("factory", "The factory", factory, (failures_table(records),)),
        Section(
            "data_set",
            "The data set",
            tuple(picture for picture in about_labels if picture not in costs),
            (compositions_table(data_set),),
        ),
        Section(
            "look_at",
            "Labels to look at",
            (),
            (outliers_table(verdict), warnings_table(data_set), softened_table(data_set)),
        ),
        Section(
            "recovery", "What recovery gave, and what it cost", costs, (levels_table(data_set), rungs_table(data_set))
        ),
        Section("made_with", "What the labels were made with", (), tuple(configuration_tables(data_set))),
        Section("left_out", "What is not shown", (), (left_out_table(records, data_set, campaign),)),
    ]
    made = {
        "LaunchPad": address,
        "campaign": campaign if campaign is not None else "all",
        "made": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "version": f"dftfactory {__version__}",
    }
    return Report(made, _headline(records, data_set, verdict), sections)


def to_html(report: Report) -> str:
    """Return the page; nothing in it asks for anything outside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markup of strangers in names stays text: everything is escaped but what is marked as safe below.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    figures = {picture.name: figure_of(picture) for picture in report.pictures}
    return environment.get_template(TEMPLATE.name).render(
        mark=MARK,
        report=report,
        figures=json_for_script(figures),
        plotly=plotly_js().read_text(encoding="utf-8"),
    )


def json_for_script(values: Any) -> str:
    """Return JSON that ends no script block and opens no comment in it, whatever the names in it are."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def checked_path(path: Path) -> Path:
    """Return where a report may be written.

    Raises
    ------
    DFTFactoryError
        It may not; says why and what to do.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise DFTFactoryError(f"a report is a file that ends in .html, got {path}")
    path = path.resolve()  # a link stays a link
    if not path.parent.is_dir():
        raise DFTFactoryError(f"the folder {path.parent} does not exist: `mkdir -p` it, or give another path")
    if not os.access(path.parent, os.W_OK):
        raise DFTFactoryError(f"the folder {path.parent} cannot be written: give a path in one of your own")
    if path.is_dir() or (path.exists() and not _is_report(path)):
        raise DFTFactoryError(f"{path} is there already and is no report of ours: move it away, or give another name")
    return path


def address_of(launchpad: LaunchPad) -> str:
    """Return hosts and database of an open LaunchPad; never user or password."""
    hosts = launchpad.connection.topology_description.server_descriptions()
    return f"{', '.join(sorted(f'{host}:{port}' for host, port in hosts))}, database {launchpad.name}"


def _is_report(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(200)
    except OSError:
        return False


def _headline(records: Sequence[Record], data_set: DataSet, verdict: Verdict) -> list[tuple[str, str]]:
    progress = progress_of(records)
    completed, failed = (progress.states.get(state, 0) for state in ("COMPLETED", "FIZZLED"))
    waiting = sum(progress.states.get(state, 0) for state in ("READY", "WAITING", "RESERVED", "RUNNING"))
    wasted = progress.wasted_core_hours
    share = f" ({100 * wasted / progress.core_hours:.0f} %)" if progress.core_hours else ""
    numbers = [
        (f"{progress.total:,}", "structures"),
        (f"{completed:,}", "COMPLETED"),
        (f"{failed:,}", "FIZZLED"),
        (f"{waiting:,}", "waiting or running"),
        (f"{len(data_set.labels):,}", "labels"),
        (f"{len({outlier.calculation_id for outlier in verdict.outliers}):,}", "labels that look odd"),
        (in_few_digits(progress.core_hours), "core-hours"),
        (in_few_digits(wasted) + share, "core-hours wasted"),
    ]
    costs = [label.core_seconds for label in data_set.labels if label.core_seconds is not None]
    if costs:
        numbers.append((in_few_digits(sum(costs) / len(costs)), "core-seconds per label"))
    if waiting and progress.labels_per_hour is not None:
        numbers.append((in_few_digits(progress.labels_per_hour), "labels per hour"))
    return numbers
