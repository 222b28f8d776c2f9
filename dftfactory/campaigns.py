"""Campaigns: a name for a set of structures, on candidates, Fireworks, workflows and labels.

A structure may belong to several: computed once for one of them, it is asked for by another later. Its Firework and its
label then get the second name, too; the fingerprint does not depend on it.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dftfactory.errors import CandidateError
from dftfactory.launches import FireworkState, join_campaign
from dftfactory.store import LabelStore, launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad


@launchpad_errors()
def refuse_unknown_campaign(launchpad: LaunchPad, campaign: str | None) -> None:
    """Refuse a name that no Firework and no label has: a slip would look as if nothing were there.

    Raises
    ------
    CandidateError
        It is unknown; the message has those that there are.
    """
    labels = LabelStore(launchpad).collection
    if campaign is None or launchpad.fireworks.find_one({"spec.campaigns": campaign}, {"_id": 1}) is not None:
        return
    if labels.find_one({"campaigns": campaign}, {"_id": 1}) is not None:  # it is in an archive
        return
    names = sorted(map(str, {*launchpad.fireworks.distinct("spec.campaigns"), *labels.distinct("campaigns")}))
    close = difflib.get_close_matches(campaign, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    there_are = f"there are {', '.join(names)}" if names else "there is none yet"
    raise CandidateError(f"no campaign {campaign!r} in this LaunchPad: {there_are}{hint}")


class Joins:
    """What has to get the name of one more campaign: noted structure by structure, written page by page."""

    def __init__(self, launchpad: LaunchPad, store: LabelStore) -> None:
        self.launchpad = launchpad
        self.store = store
        self.fingerprints: defaultdict[str, set[str]] = defaultdict(set)

    def note(
        self,
        fingerprint: str,
        campaigns: Iterable[str],
        label: Mapping[str, Any] | None,
        firework: FireworkState | None,
    ) -> None:
        """Note what lacks one of these names; None where there is no label, or no Firework."""
        for campaign in campaigns:
            in_label = label is None or campaign in label.get("campaigns", ())
            in_firework = firework is None or campaign in firework.campaigns
            if not (in_label and in_firework):
                self.fingerprints[campaign].add(fingerprint)

    def write(self) -> None:
        """Add the names; safe to repeat."""
        for campaign, fingerprints in self.fingerprints.items():
            join_campaign(self.launchpad, campaign, fingerprints)
            self.store.join_campaign(campaign, fingerprints)
        self.fingerprints.clear()
