"""Our pages of the web GUI: the overview, the table of structures, and one structure.

All of them are made on the server from records in memory; the script only draws figures and, while
something runs or waits, asks for the parts that change. Parts are the same templates for the page and for the script.
"""

from __future__ import annotations

import gzip
from collections import Counter
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request, send_file, url_for
from werkzeug.wrappers import Response as AnyResponse

from dftfactory.errors import UnknownStructureError
from dftfactory.launches import LIVE, OVER
from dftfactory.monitor.failed import explanation_of
from dftfactory.monitor.finding import find_fw_id
from dftfactory.monitor.progress import Progress, progress_of
from dftfactory.monitor.record_table import RecordTable
from dftfactory.monitor.records import Record
from dftfactory.monitor.running import read_running
from dftfactory.monitor.story import Story, tell_story
from dftfactory.report import pictures
from dftfactory.report.plotly_figures import plotly_js
from dftfactory.webgui import words
from dftfactory.webgui.one_structure import facts_of_structure, file_of
from dftfactory.webgui.table import COLUMNS, STATES, Query, choices_of, page_of

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Running ones on the overview; the table has all of them.
MOST_RUNNING = 25
# The largest number that the database knows.
MOST_FW_ID = 2**63 - 1
# What is shown is of this moment, and of strangers' structures: nothing of it belongs into a cache.
NOT_KEPT = {"Cache-Control": "no-store"}
# Column → its head and its unit.
HEADS = {
    **{name: (name, "") for name in COLUMNS},
    "energy": ("energy", "eV"),
    "max_force": ("max force", "eV/Å"),
    "core_hours": ("core-hours", ""),
}
NUMERIC = ("level", "iterations", "energy", "max_force", "core_hours")
OVERVIEW_PARTS = ("progress", "running", "failures", "levels")
STRUCTURE_PARTS = ("header", "attempts", "launches", "forces")


def make_pages(launchpad: LaunchPad, table: RecordTable | None = None) -> Blueprint:
    """Return the blueprint `dft` of our pages, below /dft.

    Parameters
    ----------
    launchpad
        What is shown; nothing is written to it.
    table
        Its records, where they are kept already.
    """
    pages = Blueprint("dft", __name__, url_prefix="/dft", template_folder="templates", static_folder="static")
    table = table or RecordTable(launchpad)
    for name in ("number", "short", "hours", "duration", "moment", "rate", "value", "percent", "scf_progress"):
        pages.add_app_template_filter(getattr(words, name), name)
    pages.add_app_template_filter(words.css_class, "css")
    pages.add_app_template_filter(words.outcome_class, "outcome")

    @pages.route("/")
    def overview() -> str:
        facts = _overview(launchpad, table, request.args.get("campaign", "").strip())
        return _render("dft/overview.html", **facts)

    @pages.route("/api/overview")
    def overview_api() -> Response:
        facts = _overview(launchpad, table, request.args.get("campaign", "").strip())
        parts = OVERVIEW_PARTS if facts["progress"].total else ()
        return _answer(facts, parts, facts["figures"], progress=facts["progress"].to_dict())

    @pages.route("/structures")
    def structures() -> str:
        return _render("dft/structures.html", **_table(launchpad, table, Query.from_args(request.args)))

    @pages.route("/api/structures")
    def structures_api() -> Response:
        facts = _table(launchpad, table, Query.from_args(request.args))
        return _answer(facts, ("table",), {}, structures=[record.to_dict() for record in facts["rows"].rows])

    @pages.route("/structures/<int:fw_id>")
    def structure(fw_id: int) -> str:
        return _render("dft/structure.html", **_structure(launchpad, table, fw_id))

    @pages.route("/api/structures/<int:fw_id>")
    def structure_api(fw_id: int) -> Response:
        facts = _structure(launchpad, table, fw_id)
        return _answer(facts, STRUCTURE_PARTS, facts["figures"], story=facts["story"].to_dict())

    @pages.route("/structures/<int:fw_id>/files/<path:name>")
    def file(fw_id: int, name: str) -> AnyResponse:
        story = _story(launchpad, fw_id)
        path = file_of(story, name)
        if path is None:
            where = "of this machine" if story.folder is None else f"or is not one of those of structure {fw_id}"
            abort(404, f"The file is out of sight {where}.")
        # Whatever is in it, the browser shows it as text, and reads it in pieces.
        response = send_file(path, mimetype="text/plain", max_age=0)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        return response

    @pages.route("/find")
    def find() -> AnyResponse:
        who = request.args.get("q", "").strip()
        if not who:
            return redirect(url_for("dft.structures"))
        try:
            fw_id = find_fw_id(launchpad, who)
        except UnknownStructureError as error:
            if Query(q=who).select(table.records()):
                return redirect(url_for("dft.structures", q=who))
            abort(404, error.message)
        return redirect(url_for("dft.structure", fw_id=fw_id))

    @pages.route("/plotly.min.js")
    def plotly() -> Response:
        packed = "gzip" in request.headers.get("Accept-Encoding", "")
        response = Response(_plotly(packed), mimetype="text/javascript")
        response.vary.add("Accept-Encoding")
        response.cache_control.max_age = 7 * 86400
        response.cache_control.private = True
        if packed:
            response.content_encoding = "gzip"
        return response

    @pages.after_request
    def not_kept(response: AnyResponse) -> AnyResponse:
        if not response.cache_control.max_age:
            response.headers.update(NOT_KEPT)
        return response

    return pages


def _render(template: str, **facts: Any) -> str:
    return words.visible(render_template(template, **facts))


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _answer(facts: dict[str, Any], parts: tuple[str, ...], figures: dict[str, Any], **more: Any) -> Response:
    """Return what the script asks for: parts of the page, figures, and the same as plain values for other programs."""
    html = {part: _render(f"dft/part_{part}.html", **facts) for part in parts}
    return jsonify(updated=_now().isoformat(), live=facts["live"], parts=html, figures=figures, **more)


def _frame(table: RecordTable, launchpad: LaunchPad, page: str, campaign: str) -> dict[str, Any]:
    """Return what the frame of each page shows."""
    campaigns = Counter(name for record in table.records() for name in record.campaigns)
    return {
        "page": page,
        "campaign": campaign,
        "campaigns": dict(sorted(campaigns.items())),
        "now": _now(),
        "launchpad_name": str(launchpad.name),
    }


def _overview(launchpad: LaunchPad, table: RecordTable, campaign: str) -> dict[str, Any]:
    records = table.records(campaign or None)
    progress = progress_of(records, read_running(launchpad, campaign or None))
    shown = (pictures.throughput(records), pictures.cost(records))
    waiting = sum(progress.states.get(state, 0) for state in ("READY", "WAITING", "RESERVED"))
    levels = sorted(progress.levels.items())
    most = max((number for _, number in levels), default=1)
    return {
        **_frame(table, launchpad, "overview", campaign),
        "progress": progress,
        "live": _is_live(records, campaign),
        "over": sum(progress.states.get(state, 0) for state in OVER),
        "waiting": waiting,
        "failed": sum(progress.failures.values()),
        "labels": sum(progress.levels.values()),
        "shares": _shares(progress),
        "levels": [
            {"level": level, "quality": quality, "number": number, "share": 100 * number / most}
            for (level, quality), number in levels
        ],
        "explanations": {failure: explanation_of(failure) for failure in progress.failures},
        "most_running": MOST_RUNNING,
        "figures": {picture.name: _figure(picture) for picture in shown},
    }


def _shares(progress: Progress) -> list[dict[str, Any]]:
    """Return the parts of the bar, in thousandths; each can be seen, however small it is."""
    states = [(state, progress.states[state]) for state in STATES if progress.states.get(state)]
    widths = [max(4.0, 1000 * number / progress.total) for _, number in states]
    scale = 1000 / sum(widths, 0.001)
    shares, x = [], 0.0
    for (state, number), width in zip(states, widths, strict=True):
        shares.append({"state": state, "number": number, "x": round(x, 2), "width": round(width * scale, 2)})
        x += width * scale
    return shares


def _table(launchpad: LaunchPad, table: RecordTable, query: Query) -> dict[str, Any]:
    records = table.records(query.campaign or None)
    found = query.select(records)
    rows = page_of(found, query.page)
    return {
        **_frame(table, launchpad, "structures", query.campaign),
        "query": query,
        "choices": choices_of(records),
        "rows": rows,
        "total": len(records),
        "columns": HEADS,
        "numeric": NUMERIC,
        "live": _is_live(records, query.campaign),
    }


def _structure(launchpad: LaunchPad, table: RecordTable, fw_id: int) -> dict[str, Any]:
    story = _story(launchpad, fw_id)
    shown = (pictures.scf_picture(story.attempts), pictures.ladder_picture(story.attempts))
    facts = facts_of_structure(story)
    figures = {picture.name: _figure(picture) for picture in shown}
    if facts["view"] is not None:
        figures["structure"] = {"figure": facts["view"], "title": "Structure", "note": ""}
    return {
        **_frame(table, launchpad, "structure", ""),
        **facts,
        "story": story,
        "record": story.record,
        "live": story.record.state in LIVE,
        "figures": figures,
    }


def _story(launchpad: LaunchPad, fw_id: int) -> Story:
    if fw_id > MOST_FW_ID:
        abort(404, f"There is no structure {fw_id}.")
    try:
        return tell_story(launchpad, fw_id)
    except UnknownStructureError as error:
        abort(404, error.message)


def _figure(picture: pictures.Picture) -> dict[str, Any]:
    return {"figure": pictures.figure_of(picture), "title": picture.title, "note": picture.note}


def _is_live(records: list[Record], campaign: str) -> bool:
    """Whether anything may change by itself: what is PAUSED waits for a person, an empty queue for its structures."""
    is_empty = not (records or campaign)
    return is_empty or any(record.state in LIVE and record.state != "PAUSED" for record in records)


@lru_cache(maxsize=2)
def _plotly(packed: bool) -> bytes:
    content = plotly_js().read_bytes()
    return gzip.compress(content, 6) if packed else content
