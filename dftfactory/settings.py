"""What DFTConfig and WorkerConfig share: a YAML file to values, and one error that lists every problem in them."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dftfactory.errors import ConfigError

# Long enough for every sensible value; a whole `pw` would bury what is wrong with it.
_VALUE_LENGTH = 80
# Of a value of any depth and size, no more is looked at than can be shown: aliases in YAML make huge ones of nothing.
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 4, 20, 20, 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * _VALUE_LENGTH
# Characters of a file that a person has written.
_MAX_FILE = 1_000_000
# pydantic's words, in the order of replacement, and those of a person who writes YAML.
_WORDS = (
    ("Input should be", "must be"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("a valid string", "text (a number in quotes is text)"),
    ("a valid dictionary or instance of LadderLevel", "`key: value` pairs"),
    ("a valid dictionary or instance of AnnealStage", "`key: value` pairs"),
    ("a valid dictionary", "`key: value` pairs"),
    ("a valid integer", "a whole number"),
    ("a valid ", "a "),
)


# (key below the value that is checked or "", what stands there, what was expected)
Problem = tuple[str, Any, str]


class Strict(BaseModel):
    """No conversion of types, no unknown keys, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Settings(Strict):
    """Raises one ConfigError that lists every problem."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(type(self), error) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values that the constructor takes back; unset ones are left out."""
        return self.model_dump(mode="json", exclude_none=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of `key: value` lines; an empty one has none.

    Raises
    ------
    ConfigError
        The file is missing, unreadable, no YAML, or holds something else.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # YAML 1.2: `1e-9` is a number and `no` is a word.
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise ConfigError(f"{path} is too large for a file of settings; is it another file?")
        values = YAML(typ="safe", pure=True).load(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `dftfactory init` writes one with comments") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deep for a file of settings") from error
    except (YAMLError, ValueError) as error:  # an impossible date is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" (line {mark.line + 1})"
        text = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path} is not valid YAML{line}: {text}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, got {_shown(values)}")
    if other := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{path}: keys must be words, got {', '.join(map(_shown, other))}")
    return values


def problems_error(found: list[Problem]) -> PydanticCustomError:
    """Return what a validator raises that found several things in one value."""
    return PydanticCustomError("problems", "{number} problems", {"number": len(found), "found": found})


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none, although Python counts them as such."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def checked_path(value: str | None) -> str | None:
    """Return the name of a file or folder; refuse one that pw.in or the system cannot hold."""
    if value is not None and not re.fullmatch(r"[^\x00-\x1f\x7f]+", value):
        raise ValueError("must be a name without control characters")
    return value


def unknown_elements(names: Mapping[Any, Any]) -> Iterator[Problem]:
    """Problems of a table by element: keys that are no chemical symbols."""
    from ase.data import atomic_numbers

    for name, value in names.items():
        if name not in atomic_numbers or name == "X":
            yield str(name), value, "is no chemical element"


def _config_error(kind: type[Settings], error: ValidationError) -> ConfigError:
    problems = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        if item["type"] == "missing":
            problems.append({"key": ".".join(path), "problem": "is missing"})
            continue
        for key, value, text in _found(kind, item["loc"], item):
            name = " ".join(".".join([*path, *([key] if key else [])]).split())
            problems.append({"key": name, "value": _shown(value), "problem": text})
    lines = [
        f"{problem['key']}{' = ' + problem['value'] + ':' if 'value' in problem else ''} {problem['problem']}"
        for problem in problems
    ]
    return ConfigError(f"{kind.__name__}: {'; '.join(lines)}", problems=problems)


def _found(kind: type[Settings], place: tuple[int | str, ...], item: Any) -> list[Problem]:
    if item["type"] == "problems":
        found: list[Problem] = item["ctx"]["found"]
        return found
    if item["type"] == "extra_forbidden":
        return [("", item["input"], f"is unknown; {_hint(str(place[-1]), _fields_at(kind, place))}")]
    text = item["msg"].removeprefix("Value error, ")
    for theirs, ours in _WORDS:
        text = text.replace(theirs, ours)
    unit = kind.model_fields[str(place[0])].description if len(place) == 1 else None
    return [("", item["input"], text + (f" ({unit})" if unit else ""))]


def _hint(name: str, fields: Mapping[str, FieldInfo]) -> str:
    close = difflib.get_close_matches(name.lower(), fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = "; other parameters of pw.x stand under `pw`" if "pw" in fields else ""
    return f"known are {', '.join(sorted(fields))}{elsewhere}"


def _fields_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> Mapping[str, FieldInfo]:
    """Fields that the last key of `place` could have been: those of the model, or of one below it."""
    for part in place[:-1]:
        if isinstance(part, str):
            kind = _model_in(kind.model_fields[part].annotation) or kind
    return kind.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as `list[LadderLevel] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in getattr(annotation, "__args__", ()) if (model := _model_in(part))), None)


def _shown(value: Any) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= _VALUE_LENGTH else f"{text[: _VALUE_LENGTH - 3]}..."
