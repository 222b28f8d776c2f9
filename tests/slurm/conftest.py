"""Fixtures of the tests with a real Slurm: it is started once, and each test has a user with a LaunchPad."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_user import ClusterUser
from slurm_server import COMMANDS, DAEMONS, LocalSlurm, running_slurm

from dftfactory.config import DFTConfig


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip where Slurm is not installed; fail there in CI, where a skip would prove nothing."""
    if item.get_closest_marker("slurm") is None:
        return
    if missing := [name for name in (*DAEMONS.values(), *COMMANDS, "munge") if shutil.which(name) is None]:
        reason = f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge slurm-client)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def cluster_config(config: DFTConfig) -> DFTConfig:
    """Norm-conserving files only: with an ultrasoft one in the data set the density would have a larger cutoff."""
    files = {element: config.pseudopotentials[element] for element in ("Al", "Si")}
    return config.model_copy(update={"pseudopotentials": files})


@pytest.fixture
def user(tmp_path: Path, slurm: LocalSlurm, launchpad: Any, cluster_config: DFTConfig) -> Iterator[ClusterUser]:
    """A user with a LaunchPad of their own, none of whose jobs outlives the test."""
    yield ClusterUser.begin(_new_folder(tmp_path), slurm, launchpad, cluster_config)
    slurm.cancel_all()


@pytest.fixture
def user_with_classes(
    tmp_path: Path, slurm: LocalSlurm, launchpad: Any, cluster_config: DFTConfig
) -> Iterator[ClusterUser]:
    """One whose files come from `dftfactory init --cluster slurm`."""
    yield ClusterUser.begin_with_classes(_new_folder(tmp_path), slurm, launchpad, cluster_config)
    slurm.cancel_all()


def _new_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    folder.mkdir()
    return folder
