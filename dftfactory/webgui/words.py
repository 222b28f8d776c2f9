"""Numbers, times and durations as our pages show them."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from typing import Any

# Control letters, and those that turn the direction of what is written: of one name, and of our own words after it.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Where there is no value; a screen reader says nothing, and an empty cell looks forgotten.
NOTHING = "–"


def visible(text: str) -> str:
    """Return a page in which every letter that cannot be seen has a mark in its place."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with so many digits after the point and groups of thousands."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """Return a number of which the power of ten matters, an SCF accuracy: 3.2e-05."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.1e}"


def hours(seconds: float | None) -> str:
    """Return core-seconds as core-hours, with digits enough for a short run."""
    if seconds is None:
        return NOTHING
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """Return a time as a person says it: 3 d 4 h, 2 h 10 min, 45 s."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(when: datetime | None) -> str:
    """Return a time in UTC; the script of the pages turns it into the clock of the reader."""
    return NOTHING if when is None else f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def percent(part: float, whole: float) -> str:
    """Return a share in percent: never 0 for something, and 100 only for all."""
    if whole <= 0:
        return NOTHING
    share = 100 * part / whole
    if 0 < share < 1:
        return "< 1 %"
    return f"{min(99, round(share)) if part < whole else 100} %"


def scf_progress(accuracy: float | None, conv_thr: float | None, start: float = 1.0) -> int | None:
    """Return how much of the way to `conv_thr` an SCF has gone, in percent of the decades.

    `start` in Ry: the first iterations of most structures are within a decade of it.
    """
    if not accuracy or not conv_thr or accuracy < 0 or not 0 < conv_thr < start:
        return None
    done = math.log10(start / accuracy) / math.log10(start / conv_thr)
    return round(100 * min(1.0, max(0.0, done)))


def rate(per_hour: float) -> str:
    """Return a rate with about two digits."""
    return f"{per_hour:,.0f}" if per_hour >= 10 else f"{per_hour:.2g}"


def value(entry: Any) -> str:
    """Return the value of a parameter as an input of pw.x has it; None is pw.x's own default."""
    if entry is None:
        return "default"
    if isinstance(entry, bool):
        return "true" if entry else "false"
    if isinstance(entry, float):
        return f"{entry:g}"
    if isinstance(entry, dict):
        return ", ".join(f"{name}: {value(own)}" for name, own in entry.items()) or "none"
    if isinstance(entry, (list, tuple)):
        return ", ".join(value(own) for own in entry) or "none"
    return str(entry)


def css_class(state: Any) -> str:
    """Return the letters of a word that may be a class in HTML: what is in a database may be anything."""
    return "".join(letter for letter in str(state) if letter.isascii() and letter.isalnum()) or "unknown"


def outcome_class(outcome: str | None) -> str:
    """Return how an attempt ended, for its colour: `good`, `bad`, or `open` while it runs."""
    if outcome is None:
        return "open"
    return "good" if outcome in ("CONVERGED", "STAGE_CONVERGED", "TIGHTENED", "SOFTENED") else "bad"
