"""The Slurm of the tests: only this machine can reach it, others may run beside it, and nothing of it is left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from slurm_server import LocalSlurm, processes_of, running_slurm, wait_for

pytestmark = pytest.mark.slurm


def listening_addresses() -> dict[int, set[str]]:
    """Port → addresses on which somebody listens, as the kernel writes them."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                address, _, port = local.partition(":")
                found.setdefault(int(port, 16), set()).add(address)
    return found


def test_a_second_slurm_is_closed_to_others_and_leaves_no_process_and_no_socket(
    slurm: LocalSlurm, tmp_path: Path
) -> None:
    """With a job that is still running, and a process in it that has left the job's process tree."""
    job = tmp_path / "job.sh"
    job.write_text(f"#!/bin/sh\ncd {tmp_path}\n(setsid sleep 1000 &)\ntouch began\nsleep 1000\n")
    (folder := tmp_path / "s").mkdir()
    with running_slurm(folder) as second:
        assert slurm.command("squeue", "-h", "-t", "R") == ""
        addresses = listening_addresses()
        assert [addresses[port] for port in second.ports] == [{"0100007F"}] * 2  # 127.0.0.1
        second.command("sbatch", f"--output={tmp_path}/job.out", str(job))
        wait_for(lambda: (tmp_path / "began").exists(), second.report)
        assert len([words for words in processes_of(second).values() if "sleep" in words]) == 2
    assert processes_of(second) == {}
    assert not set(second.ports) & set(listening_addresses())
    assert not [path for path in folder.rglob("*") if path.is_socket()]
    assert slurm.command("sinfo", "-h", "-p", "main", "-o", "%T").strip() == "idle"


def test_a_slurm_that_cannot_start_says_why_and_leaves_nothing(
    tmp_path: Path, slurm: LocalSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm_server._free_port", lambda: slurm.ports[0])
    (folder := tmp_path / "s").mkdir()
    broken = LocalSlurm(folder, slurm.ports)
    with pytest.raises(AssertionError, match=r"(?s)ended at once.*slurmctld"), running_slurm(folder):
        pass
    assert processes_of(broken) == {}
    assert slurm.command("sinfo", "-h", "-p", "main", "-o", "%T").strip() == "idle"
    with socket.create_connection(("127.0.0.1", slurm.ports[0])):
        pass
