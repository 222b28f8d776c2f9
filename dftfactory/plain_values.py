"""Values that come from a database or go to JSON: read for what they are worth, and written as plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def read_time(value: Any) -> datetime | None:
    """Return a time of FireWorks in UTC: it keeps text or a date, both in UTC, with or without saying so."""
    if not isinstance(value, datetime):
        try:
            value = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return None
    time: datetime = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    try:
        return time.astimezone(timezone.utc)
    except (OverflowError, ValueError):
        return None


def read_number(value: Any) -> float | None:
    """Return a finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def read_count(value: Any) -> int | None:
    """Return a whole number; None for everything else."""
    number = read_number(value)
    return int(number) if number is not None and number == int(number) else None


def read_text(value: Any) -> str | None:
    """Return text, also that of a number; None where there is none, or a structure stands in its place."""
    if isinstance(value, (str, int, float)):
        return str(value)
    return None


def read_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping; an empty one for everything else."""
    return value if isinstance(value, Mapping) else {}


def plain(value: Any) -> Any:
    """Return what JSON can hold: dicts, lists, text, finite numbers, None; times as text in ISO 8601."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist())
    return str(value) if isinstance(value, Path) else repr(value)
