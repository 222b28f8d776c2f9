"""Which Firework somebody means by a calculation_id, a number or a fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dftfactory.errors import SeveralStructuresError, UnknownStructureError
from dftfactory.launches import OURS
from dftfactory.plain_values import read_mapping
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# Letters of a fingerprint that name it: 4 of them are `dft` and the first of 32 of a digest.
FEWEST_LETTERS = 8
_DIGITS, _LISTED = 15, 10


def find_fw_id(launchpad: LaunchPad, who: str) -> int:
    """Return the Firework that somebody means.

    Parameters
    ----------
    launchpad
        Where it is.
    who
        A calculation_id; else the number of a Firework; else a fingerprint, or at least 8 letters of its beginning.

    Raises
    ------
    UnknownStructureError
        There is none.
    SeveralStructuresError
        There are several; the message lists their Fireworks.
    """
    ways: list[dict[str, Any]] = [{"spec.calculation_id": who, **OURS}]
    if who.isascii() and who.isdigit() and len(who) < _DIGITS:
        ways.append({"fw_id": int(who), **OURS})
    if len(who) >= FEWEST_LETTERS:
        ways.append({"spec.fingerprint": {"$gte": who, "$lt": f"{who}\uffff"}})
    for query in ways:
        found = _who(launchpad, query)
        if len(found) > 1:
            raise _several(who, found)
        if found:
            return int(found[0]["fw_id"])
    raise UnknownStructureError(
        f"there is no structure {who!r} in this LaunchPad: give its calculation_id, the number of its Firework, or at "
        f"least {FEWEST_LETTERS} letters of its fingerprint; of equal structures only the one that was queued first is "
        "there, and its label is that of all",
        who=who,
    )


def _who(launchpad: LaunchPad, query: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = {"_id": 0, "fw_id": 1, "state": 1, "spec.calculation_id": 1}
    with launchpad_errors():
        return sorted(launchpad.fireworks.find(query, keys, limit=_LISTED + 1), key=lambda each: each["fw_id"])


def _several(who: str, found: Sequence[Mapping[str, Any]]) -> SeveralStructuresError:
    listed = ", ".join(
        f"{each['fw_id']} ({read_mapping(each.get('spec')).get('calculation_id')}, {each.get('state')})"
        for each in found[:_LISTED]
    )
    more = ", ..." if len(found) > _LISTED else ""
    return SeveralStructuresError(
        f"{who!r} is more than one structure; give the number of the Firework: {listed}{more}",
        who=who,
        fw_ids=[each["fw_id"] for each in found],
    )
