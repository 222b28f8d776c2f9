"""All records in memory, for a server that shows them again and again."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from dftfactory.errors import LaunchPadError
from dftfactory.monitor.records import Record, read_changed, read_records
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# What is asked for again at each refresh: the clocks of nodes, which write the times of changes, differ by less.
CLOCKS = timedelta(minutes=1)
# Seconds after which all is read again. FireWorks notes no time where a Firework joins a campaign or is deleted.
ANEW = 300.0


class RecordTable:
    """The records of a LaunchPad, refreshed when they are asked for and older than `seconds`; for several threads.

    Raises
    ------
    LaunchPadError
        From every method: the database does not answer or refuses.
    """

    def __init__(self, launchpad: LaunchPad, seconds: float = 2.0) -> None:
        self.launchpad = launchpad
        self.seconds = seconds
        self._lock = threading.Lock()
        # Replaced, and never changed: another thread may be reading them.
        self._records: dict[int, Record] = {}
        self._sorted: list[Record] = []
        self._read = self._refreshed = float("-inf")
        self._n_fireworks = 0
        self._newest: datetime | None = None
        self._reader = threading.Thread()

    def records(self, campaign: str | None = None) -> list[Record]:
        """Return all records, or those of one campaign, by fw_id."""
        self._refresh()
        return [record for record in self._sorted if campaign is None or campaign in record.campaigns]

    def get(self, fw_id: int) -> Record | None:
        """Return one record; None where there is no such Firework of ours."""
        self._refresh()
        return self._records.get(fw_id)

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed < self.seconds:
            return
        # While one thread reads, the others show what there is.
        if not self._lock.acquire(blocking=self._read < 0):
            return
        try:
            if time.monotonic() - self._refreshed >= self.seconds:
                if self._newest is None:
                    self._read_all()
                else:
                    self._read_changes()
                self._refreshed = time.monotonic()
        finally:
            self._lock.release()

    @launchpad_errors()
    def _read_all(self) -> None:
        began, n_fireworks = time.monotonic(), self.launchpad.fireworks.estimated_document_count()
        self._keep({record.fw_id: record for record in read_records(self.launchpad)})
        self._read, self._n_fireworks = began, n_fireworks

    @launchpad_errors()
    def _read_changes(self) -> None:
        n_fireworks = self.launchpad.fireworks.estimated_document_count()
        since = (self._newest or datetime.now(timezone.utc)) - CLOCKS
        changed = {record.fw_id: record for record in read_changed(self.launchpad, since)}
        n_new = len(changed.keys() - self._records.keys())
        if any(self._records.get(fw_id) != record for fw_id, record in changed.items()):
            self._keep({**self._records, **changed})
        # Some were removed, or came with times of long ago.
        is_other = not self._n_fireworks <= n_fireworks <= self._n_fireworks + n_new
        self._n_fireworks = n_fireworks
        if (is_other or time.monotonic() - self._read > ANEW) and not self._reader.is_alive():
            self._reader = threading.Thread(target=self._read_all_quietly, daemon=True)
            self._reader.start()

    def _read_all_quietly(self) -> None:
        """Read all while the pages show what there is; a database that is away is found by the next page."""
        with contextlib.suppress(LaunchPadError):
            self._read_all()

    def _keep(self, records: dict[int, Record]) -> None:
        now = datetime.now(timezone.utc)
        # The clock of a node may be far ahead: what others write then would never be newer.
        times = [min(record.updated, now) for record in records.values() if record.updated is not None]
        self._newest = max(times, default=None)
        self._sorted = [records[fw_id] for fw_id in sorted(records)]
        self._records = records
