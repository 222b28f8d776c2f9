"""Which addresses of FireWorks' pages there are: its views take any, and fail on those that make no sense."""

from __future__ import annotations

import math
import re
from typing import Any

from flask import Flask, abort, flash, request, session
from werkzeug.datastructures import ImmutableMultiDict

from dftfactory.webgui.queries import problem_of, read_query
from dftfactory.webgui.reader import SORTING_KEYS, StockReader
from dftfactory.webgui.stock import MOST_INTERVALS, REPORTED

# Endpoints of FireWorks' application, and the arguments that their forms and links send.
_ARGUMENTS = {
    "home": {"fw_query", "wf_query"},
    "fw_state": {"page"},
    "wf_state": {"page"},
    "wf_metadata_find": {"page"},
    **dict.fromkeys(
        ("get_fw_details", "fw_details", "workflow_json", "wf_details", "report", "dashboard", "simple"), ()
    ),
}
_FILTERS = {"fw_filt": "fw_query", "wf_filt": "wf_query"}
# What the database holds.
_INT64 = 2**63


def check_addresses(app: Flask, module: Any) -> None:
    """Answer 404 where FireWorks would answer 500 or show a page of nothing, and keep odd queries from the database."""
    reader: StockReader = module.app.lp

    @app.before_request
    def check_address() -> None:
        endpoint = request.endpoint
        if endpoint not in _ARGUMENTS:
            return
        allowed = _ARGUMENTS[endpoint]
        # flask_paginate takes its own settings from arguments, too.
        request.args = ImmutableMultiDict((key, value) for key, value in request.args.items() if key in allowed)
        _check_queries()
        values = request.view_args or {}
        if "fw_id" in values:
            _check_firework(reader, values["fw_id"])
        elif "wf_id" in values:
            _check_workflow(reader, values["wf_id"])
        elif "interval" in values:
            _check_interval(values["interval"], values["num_intervals"], values.get("coll", "fireworks"))
        elif endpoint == "wf_metadata_find":
            _check_metadata(values["key"], values["value"])
        if "state" in values:
            _check_list(module, values, "fw" if endpoint == "fw_state" else "wf")


def _check_queries() -> None:
    """Let only harmless queries through, typed ones and those that the cookie has kept."""
    typed = request.args.to_dict()
    for filter_name, argument in _FILTERS.items():
        if typed.get(argument):
            _, problem = read_query(typed[argument])
            if problem:
                shown = typed.pop(argument)
                flash(f"{argument} {shown[:200]!r} was not sent to the database: {problem}")
        if filter_name in session and problem_of(session[filter_name]):
            session.pop(filter_name)
    request.args = ImmutableMultiDict(typed)


def _check_firework(reader: StockReader, fw_id: int) -> None:
    if fw_id >= _INT64 or not reader.fireworks.find_one({"fw_id": fw_id}, {"_id": 1}):
        abort(404, f"There is no Firework with the number {fw_id} in this LaunchPad.")


def _check_workflow(reader: StockReader, wf_id: int) -> None:
    workflow = None if wf_id >= _INT64 else reader.workflows.find_one({"nodes": wf_id}, {"nodes": 1})
    if not workflow:
        abort(404, f"There is no workflow of a Firework with the number {wf_id} in this LaunchPad.")
    there = list(reader.fireworks.find({"fw_id": {"$in": workflow["nodes"]}}, ["fw_id"]))
    if len(there) != len(workflow["nodes"]):
        # A process was killed while it added or archived it.
        abort(404, f"The workflow of Firework {wf_id} is not complete: some of its Fireworks are missing.")


def _check_interval(interval: str, number: Any, collection: str) -> None:
    if interval not in MOST_INTERVALS or collection not in REPORTED:
        abort(404, f"Reports are by {', '.join(MOST_INTERVALS)} of {', '.join(REPORTED)}.")
    most = MOST_INTERVALS[interval]
    if not re.fullmatch(r"[0-9]{1,4}", str(number)) or not 1 <= int(number) <= most:
        abort(404, f"A report has 1 to {most} {interval}.")


def _check_metadata(key: str, value: str) -> None:
    if (
        not re.fullmatch(r"\w+(\.\w+)*", key, re.ASCII)
        or "\0" in value
        or re.fullmatch(r"\s*[-+]?[\d_]{16,}\s*", value)
    ):
        abort(404, "There are no such metadata.")


def _check_list(module: Any, values: dict[str, Any], kind: str) -> None:
    """Check state, order and page of a list."""
    state = values["state"]
    if state != "total" and state not in module.STATES:
        abort(404, f"There is no state of this name; there are {', '.join(module.STATES)}, and total for all.")
    if values.get("sorting_key", "_id") not in SORTING_KEYS:
        abort(404, f"Lists are sorted by {', '.join(SORTING_KEYS)}.")
    if values.get("sorting_order", "ASCENDING") not in ("ASCENDING", "DESCENDING"):
        abort(404, "Lists are sorted ASCENDING or DESCENDING.")
    page = request.args.get("page", "1")
    if not re.fullmatch(r"[0-9]{1,9}", page) or int(page) < 1:
        abort(404, "Pages have numbers from 1 on.")
    query = {} if state == "total" else {"state": state}
    if int(page) > 1 and "key" not in values:
        if kind == "fw":
            number = module.app.lp.get_fw_ids(module._addq_FW(query), count_only=True)
        else:
            number = module.app.lp.get_wf_ids(module._addq_WF(query), count_only=True)
        if int(page) > math.ceil(number / module.PER_PAGE):
            abort(404, f"There is no page {int(page)} of this list.")
