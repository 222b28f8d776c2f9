"""Labels to an extended XYZ file: the training set."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

from dftfactory.errors import ConfigError, DFTFactoryError, NonFiniteError, ParserError, PseudopotentialError
from dftfactory.results import DFTResult

QUALITIES = ("exact", "softened")


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes
    ----------
    written
        Number of structures in the file.
    left_out_softened
        Number of labels left out because they were reached at a raised `degauss`.
    config_hash
        The one configuration that all labels in the file were computed with; the pseudopotentials are the same, too.
    """

    written: int
    left_out_softened: int
    config_hash: str


def label_to_atoms(label: dict[str, Any]) -> Atoms:
    """Turn a label document into a structure with reference values.

    The names begin with REF_ and there is no calculator, so that no library takes them for results of its own.

    Parameters
    ----------
    label
        From the label store or a label file.

    Returns
    -------
    Atoms
        `info["REF_energy"]` in eV: F = E - TS, the energy whose derivative the forces are.
        `arrays["REF_forces"]`, shape (n_atoms, 3), in eV/Å.
        `info["REF_stress"]`, shape (3, 3), in eV/Å³, positive under tension.
        `info` also has calculation_id, level, quality, config_hash and fingerprint, `degauss` (Ry) of a softened
        label, `total_magnetization` (μB per cell) of a calculation with spin, and `state_warning` where there may be a
        lower electronic state.

    Raises
    ------
    ParserError
        The label is incomplete or its parts do not fit each other.
    NonFiniteError
        A number is NaN or infinite.
    """
    name = label.get("calculation_id", "without calculation_id")
    try:
        result = DFTResult.from_dict(label["result"])
        info = {
            "REF_energy": float(result.energy),
            "REF_stress": result.stress,
            "calculation_id": str(label["calculation_id"]),
            "level": int(label["level"]),
            "quality": str(label["quality"]),
            "config_hash": str(label["config_hash"]),
            "fingerprint": str(label["fingerprint"]),
        }
        atoms = Atoms(result.symbols, positions=result.positions, cell=result.cell, pbc=result.pbc)
    except (LookupError, TypeError, ValueError) as error:
        raise ParserError(f"label {name} is damaged ({type(error).__name__}: {error}); compute it again") from error

    if result.forces.shape != (len(atoms), 3) or result.stress.shape != (3, 3):
        raise ParserError(
            f"label {name} is damaged: forces {result.forces.shape} and stress {result.stress.shape} do not fit "
            f"{len(atoms)} atoms; compute it again"
        )
    numbers = (result.energy, result.forces, result.stress, result.positions, result.cell)
    if not all(np.isfinite(array).all() for array in numbers):
        raise NonFiniteError(f"label {name} has a number that is not finite; compute it again")
    if info["quality"] not in QUALITIES:
        raise ParserError(f"quality of label {name} must be one of {', '.join(QUALITIES)}, got {info['quality']!r}")

    if info["quality"] == "softened":
        info["degauss"] = result.degauss
    if result.total_magnetization is not None:
        info["total_magnetization"] = result.total_magnetization
    if result.state_warning is not None:
        info["state_warning"] = result.state_warning
    if result.source != "xml":
        info["source"] = result.source
    atoms.info = info
    atoms.set_array("REF_forces", result.forces)
    return atoms


def export_labels(labels: Iterable[dict[str, Any]], path: Path | str, softened: bool = False) -> ExportSummary:
    """Write labels to an extended XYZ file in the order given, one frame each.

    The file appears complete or not at all: a killed or refused export leaves the old one as it was.

    Parameters
    ----------
    labels
        Label documents; read one at a time. A fingerprint that comes again is not written again.
    path
        `*.extxyz` or `*.xyz`.
    softened
        Also write labels that were reached at a raised `degauss`.

    Returns
    -------
    ExportSummary
        The numbers of labels written and left out, and their configuration.

    Raises
    ------
    ConfigError
        The file name is not one of extended XYZ, the file cannot be written, or the labels were computed with more than
        one configuration.
    PseudopotentialError
        The labels were computed with two pseudopotentials of one element.
    ParserError
        A label is damaged.
    DFTFactoryError
        There is nothing to write.

    Notes
    -----
    `ase.io.read(path, ":")` gives back energy, stress, cell and degauss to the last bit. Positions and forces have
    8 decimals, ASE's format of columns: they are off by at most 5e-9 Å and 5e-9 eV/Å.
    """
    path = _checked_path(Path(path))
    fingerprints: set[int] = set()
    hashes: Counter[str] = Counter()
    files: dict[str, Counter[tuple[str, str]]] = {}
    n_softened = 0
    with _replacing(path) as file:
        for label in labels:
            atoms = label_to_atoms(label)
            if atoms.info["quality"] == "softened" and not softened:
                n_softened += 1
                continue
            # A hash instead of the fingerprint: half of the memory, and among 10 million labels two that are equal by
            # chance are found once in 400,000 exports.
            name = hash(atoms.info["fingerprint"])
            if name in fingerprints:
                continue
            fingerprints.add(name)
            hashes[atoms.info["config_hash"]] += 1
            for element, pseudopotential in _pseudopotentials(label, atoms):
                files.setdefault(element, Counter())[pseudopotential] += 1
            # After a second one of anything nothing is written, only counted for the message.
            if len(hashes) == 1 and not _mixed_elements(files):
                atoms.info = {key: _readable(key, value) for key, value in atoms.info.items()}
                ase.io.write(file, atoms, format="extxyz")
        # Inside, so that the old file stays.
        _check_hashes(hashes, n_softened)
        _check_pseudopotentials(files)
    [(config_hash, written)] = hashes.items()
    return ExportSummary(written, n_softened, config_hash)


def _readable(key: str, value: Any) -> Any:
    """Write text as JSON where ASE would read something else: '0001' as 1, '1e5' as a float, 'T' as True."""
    if not isinstance(value, str):
        return value
    # A line break would begin another line of the file. ASE takes one backslash of each pair away.
    quoted = f"_JSON {json.dumps(value)}"
    for form in ([value] if value.isprintable() else []) + [quoted, quoted.replace("\\", "\\\\")]:
        if _comes_back(key, form, value):
            return form
    raise ParserError(f"{key} of a label is {value!r}, which extended XYZ cannot hold; compute it again")


def _comes_back(key: str, form: str, value: str) -> bool:
    try:
        line = key_val_dict_to_str({key: form})
        found = key_val_str_to_dict(line)
    except ValueError:  # it begins with _JSON and is none
        return False
    return line.isprintable() and list(found) == [key] and isinstance(found[key], str) and found[key] == value


def _pseudopotentials(label: dict[str, Any], atoms: Atoms) -> Iterator[tuple[str, tuple[str, str]]]:
    """Element, and (md5, file name) of its pseudopotential, for each element of the structure."""
    for element in sorted(set(atoms.symbols)):
        try:
            entry = label["pseudopotentials"][element]
            yield element, (str(entry["md5"]), str(entry["file"]))
        except (LookupError, TypeError) as error:
            raise ParserError(
                f"label {label['calculation_id']} does not say which pseudopotential of {element} it was computed "
                "with; compute it again"
            ) from error


def _mixed_elements(files: dict[str, Counter[tuple[str, str]]]) -> list[str]:
    """Elements with more than one content; the same content under two names is one pseudopotential."""
    return [element for element, counts in files.items() if len({md5 for md5, _ in counts}) > 1]


def _check_pseudopotentials(files: dict[str, Counter[tuple[str, str]]]) -> None:
    mixed = _mixed_elements(files)
    if not mixed:
        return
    listed = "; ".join(
        f"{element}: "
        + ", ".join(f"{file} (md5 {md5}) in {count}" for (md5, file), count in files[element].most_common())
        for element in mixed
    )
    raise PseudopotentialError(
        f"the labels were computed with different pseudopotentials of {', '.join(mixed)} ({listed} labels) and do not "
        "fit into one training set; choose one file, and compute the structures of the other again into a LaunchPad "
        "database of its own (`name` in my_launchpad.yaml)",
        pseudopotentials={
            element: [{"file": file, "md5": md5, "labels": n} for (md5, file), n in files[element].most_common()]
            for element in mixed
        },
    )


def _check_hashes(hashes: Counter[str], n_softened: int) -> None:
    if len(hashes) > 1:
        counts = ", ".join(f"{config_hash}: {count}" for config_hash, count in hashes.most_common())
        raise ConfigError(
            f"the labels were computed with {len(hashes)} configurations ({counts}) and do not fit into one training "
            "set; choose one of them with --config-hash",
            config_hashes=dict(hashes),
        )
    if not hashes and n_softened:
        raise DFTFactoryError(
            f"nothing to export: all {n_softened} labels are softened (raised degauss); ask for them with --softened"
        )
    if not hashes:
        raise DFTFactoryError("nothing to export: there are no labels; is this the right LaunchPad and --config-hash?")


def _checked_path(path: Path) -> Path:
    if path.suffix not in (".extxyz", ".xyz"):
        raise ConfigError(f"labels are exported to a file that ends in .extxyz or .xyz, got {path}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: it is a folder, or its folder is missing or read-only")
    return path.resolve()  # a link stays a link


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Open a file beside `path` that takes its place when the block ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
