"""The files that a person starts from: a commented dft.yaml, and a copy of fw_configs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from dftfactory.cluster_files import fill_in
from dftfactory.cluster_setup import ClusterSetup
from dftfactory.errors import ConfigError
from dftfactory.history import write_atomically
from dftfactory.settings import read_yaml

_PACKAGE = Path(__file__).parent
# Installed, fw_configs is inside the package; in a checkout it is beside it.
_FW_CONFIGS = next((p for p in (_PACKAGE / "fw_configs", _PACKAGE.parent / "fw_configs") if p.is_dir()), None)

_BROKEN = "this installation has no fw_configs; install dftfactory again"

# What fw_configs say where the folder that they are copied to belongs.
_PLACEHOLDER = "/path/to/this/folder"


def write_start_files(
    folder: Path, pseudopotential_dir: str | None = None, cluster: ClusterSetup | None = None
) -> list[Path]:
    """Write dft.yaml and fw_configs/ into a folder, with its name filled in, and return what was written.

    Parameters
    ----------
    folder
        Made where it does not exist.
    pseudopotential_dir
        Written into dft.yaml as an absolute path; `pseudopotentials` beside dft.yaml where absent.
    cluster
        What to fill into fw_configs; where absent they are copied as they are.

    Raises
    ------
    ConfigError
        One of the files is there already or cannot be written; nothing was written.
    """
    sources = _sources()
    template = (_PACKAGE / "dft_template.yaml").read_text(encoding="utf-8")
    files = {folder / "dft.yaml": template.format(pseudopotential_dir=_yaml_text(pseudopotential_dir))}
    configs = (folder / "fw_configs").absolute()
    if cluster is None:
        texts = {configs / name: text for name, text in sources.items() if "/" not in name}
    else:
        texts = fill_in(sources, configs, cluster)
    for path, text in texts.items():
        files[folder / "fw_configs" / path.relative_to(configs)] = _with_folder(text, configs)
    _refuse_existing(files)
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            if path.name == "my_launchpad.yaml":
                path.chmod(0o600)  # for a password
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); nothing was written") from error
    return written


def refuse_to_overwrite(folder: Path) -> None:
    """Raise ConfigError where `write_start_files` would, before anybody is asked anything."""
    _refuse_existing([folder / "dft.yaml", folder / "fw_configs" / "FW_config.yaml"])


def rocket_query() -> str:
    """Return the `query` of our my_fworker.yaml, with which a rocket takes nothing but Fireworks of dftfactory."""
    if _FW_CONFIGS is None:
        raise ConfigError(_BROKEN)
    return str(read_yaml(_FW_CONFIGS / "my_fworker.yaml")["query"])


def _sources() -> dict[str, str]:
    """Name → text of all files of fw_configs; those of a cluster are in `cluster/`."""
    if _FW_CONFIGS is None:
        raise ConfigError(_BROKEN)
    paths = sorted(path for path in _FW_CONFIGS.rglob("*") if path.suffix in (".yaml", ".txt"))
    return {str(path.relative_to(_FW_CONFIGS)): path.read_text(encoding="utf-8") for path in paths}


def _with_folder(text: str, configs: Path) -> str:
    """Fill in the folder, between quotes where its name needs them: both YAML and the shell take 'a b'."""
    text = text.replace(f"# CONFIG_FILE_DIR: {_PLACEHOLDER}", f"CONFIG_FILE_DIR: {_PLACEHOLDER}")
    return re.sub(rf"{_PLACEHOLDER}(/[\w.-]+)?", lambda found: shlex.quote(f"{configs}{found[1] or ''}"), text)


def _yaml_text(pseudopotential_dir: str | None) -> str:
    if pseudopotential_dir is None:
        return "pseudopotentials"
    # The user means the present folder, dft.yaml its own. JSON is YAML, whatever the path holds.
    return json.dumps(str(Path(pseudopotential_dir).expanduser().absolute()), ensure_ascii=False)


def _refuse_existing(paths: Iterable[Path]) -> None:
    if there := [str(path) for path in paths if path.exists() or path.is_symlink()]:
        raise ConfigError(f"{', '.join(there)} already there; nothing was written. Move it away or name another folder")
