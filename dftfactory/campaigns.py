"""Campaigns: a name for a set of structures, on candidates, Fireworks, workflows and labels.

A structure may belong to several: computed once for one of them, it is asked for by another later. Its Firework and its
label then get the second name, too; the fingerprint does not depend on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dftfactory.launches import FireworkState, join_campaign
from dftfactory.store import LabelStore

if TYPE_CHECKING:
    from fireworks import LaunchPad


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
