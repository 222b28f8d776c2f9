"""What earlier launches of a calculation have left in their folders, before a new one begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ase import Atoms
from queue_helpers import label_for

from dftfactory.config import DFTConfig
from dftfactory.errors import ClaimedError
from dftfactory.labels import write_label
from dftfactory.launch_folders import find_label, own_folders, settle
from dftfactory.pseudos import load_pseudopotentials
from dftfactory.sessions import RUN_DIR, pw_sessions
from dftfactory.specification import Specification
from dftfactory.workflows import make_spec


@pytest.fixture
def values(si_atoms: Atoms, fake_config: DFTConfig) -> dict[str, object]:
    folder = Path(fake_config.pseudopotential_dir or "")
    pseudopotentials = load_pseudopotentials(["Si"], folder, fake_config.pseudopotentials)
    return make_spec(si_atoms, "a", fake_config, pseudopotentials)


def test_nothing_is_started_beside_a_pw_x_of_which_nobody_knows(values: dict[str, object], tmp_path: Path) -> None:
    """The note of its rocket is lost: it may be anybody's, so it is not stopped either."""
    with subprocess.Popen(["/bin/sleep", "600"], env={RUN_DIR: str(tmp_path)}, start_new_session=True) as pw:
        while not pw_sessions(tmp_path):
            pass
        with pytest.raises(ClaimedError, match=r"a is still computed in .* .by whom is not known.: wait for its end"):
            settle([tmp_path], Specification(values))
        assert pw.poll() is None
        pw.kill()
    settle([tmp_path], Specification(values))


@pytest.mark.parametrize(
    ("wish", "has", "found"), [(None, None, True), (None, "w", True), ("w", "w", True), ("w", None, False)]
)
def test_a_label_on_the_disk_serves_whoever_has_no_other_wish(
    wish: str | None, has: str | None, found: bool, values: dict[str, object], tmp_path: Path
) -> None:
    label = {**label_for(values), **({} if has is None else {"force": has})}
    write_label(tmp_path, label)
    spec = Specification({**values, "force": wish})
    assert find_label([tmp_path], spec) == ((tmp_path, label) if found else None)


@pytest.mark.parametrize("name", ["../../x", "/etc", "", "a/b"])
def test_a_name_from_a_database_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    assert list(own_folders(tmp_path, name)) == [tmp_path]
