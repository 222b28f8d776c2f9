"""The files that a person starts from: a commented dft.yaml, and a copy of fw_configs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dftfactory.errors import ConfigError

_PACKAGE = Path(__file__).parent
# Installed, fw_configs is inside the package; in a checkout it is beside it.
_FW_CONFIGS = next((p for p in (_PACKAGE / "fw_configs", _PACKAGE.parent / "fw_configs") if p.is_dir()), None)


def write_start_files(folder: Path, pseudopotential_dir: str | None = None) -> list[Path]:
    """Write dft.yaml and fw_configs/ into a folder and return what was written.

    Raises
    ------
    ConfigError
        One of the files is there already; nothing was written.
    """
    if _FW_CONFIGS is None:
        raise ConfigError("this installation has no fw_configs; install dftfactory again")
    template = (_PACKAGE / "dft_template.yaml").read_text(encoding="utf-8")
    files = {folder / "dft.yaml": template.format(pseudopotential_dir=pseudopotential_dir or "pseudopotentials")}
    for source in sorted(_FW_CONFIGS.glob("*.yaml")):
        files[folder / "fw_configs" / source.name] = source.read_text(encoding="utf-8")
    _refuse_existing(files)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _refuse_existing(paths: Iterable[Path]) -> None:
    if there := [str(path) for path in paths if path.exists()]:
        raise ConfigError(f"{', '.join(there)} already there; nothing was written. Move it away or name another folder")
