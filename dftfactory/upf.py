"""One pseudopotential file in the Unified Pseudopotential Format: what its header says, and whether it is whole.

pw.x notices a damaged or wrong pseudopotential late, badly or never, so every file is read here before the run.
The format is described at https://www.quantum-espresso.org/pseudopotentials/unified-pseudopotential-format.
"""

from __future__ import annotations

import errno
import hashlib
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dftfactory.errors import PseudopotentialError

# The long names are written by ld1.x and the converters, the short ones by hand, by ONCVPSP and by newer versions.
# pw.x takes both as the same functional (`qe_dft_list.f90`, and its "back compatibility" of PBE PBE with PBX PBC).
_SHORT_NAMES = {
    "LDA": "PZ",
    "SLA PZ": "PZ",
    "SLA PZ NOGX NOGC": "PZ",
    "SLA PW": "PW",
    "SLA PW NOGX NOGC": "PW",
    "SLA PW PBX PBC": "PBE",
    "SLA PW PBE PBE": "PBE",
    "SLA PW PSX PSC": "PBESOL",
    "SLA PW REVX PBC": "REVPBE",
    "SLA PW GGX GGC": "PW91",
    "SLA PW WCX PBC": "WC",
    "SLA PW TPSS TPSS": "TPSS",
    "SLA PZ B88 P86": "BP",
    "SLA LYP B88 BLYP": "BLYP",
}

# `pseudo_type` of UPF 2, `type` of the schema and the third line of UPF 1. SL (semilocal) and 1/r (bare Coulomb)
# have no augmentation charge: for the cutoffs they are norm-conserving.
_TYPES = {"NC": "NC", "SL": "NC", "1/R": "NC", "US": "US", "USPP": "US", "PAW": "PAW"}

# UPF 1 and the schema have no attributes: the tag then matches with an empty second group.
_HEADER_TAG = re.compile(rb"""<(PP_HEADER|pp_header)((?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*)\s*/?>""")
_ATTRIBUTE = re.compile(r"""([\w:.-]+)\s*=\s*(["'])(.*?)\2""", re.DOTALL)
_ELEMENT = re.compile(r"<(\w+)>([^<]*)</\1>")
_NOT_A_NUMBER = re.compile(rb"(?<![a-z])(nan|inf|infinity)(?![a-z])|\*{3}|\0")


# Bytes; the largest in the usual libraries have 6 MB.
_MAX_SIZE = 100_000_000


@dataclass(frozen=True)
class Pseudopotential:
    """One pseudopotential file and what its header says.

    Parameters
    ----------
    element
        Chemical symbol.
    path
        The file.
    type
        "NC" (norm-conserving), "US" (ultrasoft) or "PAW".
    functional
        pw.x's short name, such as "PBE" or "PZ"; a functional without one is kept as written, in upper case.
    z_valence
        Number of valence electrons; a fraction in virtual-crystal pseudopotentials.
    relativistic
        "no", "scalar" or "full" (with spin-orbit terms). Also "no" where the file does not say.
    ecutwfc, ecutrho
        Suggested cutoffs in Ry; None where the header says 0 or nothing.
    md5
        Of the whole file, in hexadecimal: the identity of the pseudopotential.
    """

    element: str
    path: Path
    type: str
    functional: str
    z_valence: float
    relativistic: str
    ecutwfc: float | None
    ecutrho: float | None
    md5: str


def read_pseudopotential(path: Path) -> Pseudopotential:
    """Read the header of a UPF file (version 1, 2 or schema) and check that the file is whole.

    Raises
    ------
    PseudopotentialError
        The file cannot be opened, is no UPF file, is cut, has NaN, Inf or `***` for a number, or its header lacks
        the element, the type or a positive number of valence electrons.
    """
    try:
        status = path.stat()
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EINVAL, "not a file")
        if status.st_size > _MAX_SIZE:
            raise OSError(errno.EFBIG, "larger than any pseudopotential")
        data = path.read_bytes()
    except OSError as error:
        message = f"pseudopotential {path} cannot be read ({error.strerror}): check the file name and the folder"
        raise PseudopotentialError(message, path=str(path)) from error
    try:
        header = _read_header(data)
        element = header.get("element", "").strip()
        if not element:
            raise ValueError("has no element in its header")
        z_valence, _ = _number(header, "z_valence"), _number(header, "total_psenergy")
        if z_valence <= 0:
            raise ValueError(f"must have a positive z_valence in its header, got {header.get('z_valence')}")
        ecutwfc, ecutrho = _number(header, "wfc_cutoff"), _number(header, "rho_cutoff")
        return Pseudopotential(
            element=element,
            path=path,
            type=_type(header),
            functional=_functional(header.get("functional", "")),
            z_valence=z_valence,
            relativistic=_relativistic(header),
            ecutwfc=ecutwfc if ecutwfc > 0 else None,
            # ONCVPSP writes no wfc_cutoff, and under rho_cutoff the length of its radial mesh in bohr.
            ecutrho=ecutrho if ecutwfc > 0 and ecutrho > 0 else None,
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        )
    except ValueError as error:
        message = f"pseudopotential {path} {error}: get the file again from its library"
        raise PseudopotentialError(message, path=str(path)) from error


def _read_header(data: bytes) -> dict[str, str]:
    """Fields of the header under their names in UPF 2, once the rest of the file is found whole.

    The file is not parsed as XML, which many are not: PP_INFO holds any text, such as `&input`.
    """
    info = re.search(rb"</PP_INFO>", data, re.IGNORECASE)
    info_end = info.end() if info else 0
    tag = _HEADER_TAG.search(data, info_end)
    if tag is None:
        begun = re.search(rb"<PP_(HEADER|INFO)", data, re.IGNORECASE)
        raise ValueError("is cut in its header" if begun else f"is not UPF (no PP_HEADER in its {len(data)} bytes)")
    body = data[tag.end() :]
    if tag[2]:
        header = {key: value for key, _, value in _ATTRIBUTE.findall(tag[2].decode("latin-1"))}
        whole = b"</UPF>" in body
    else:
        content, header_end, body = body.partition(b"</" + tag[1] + b">")
        if not header_end:
            raise ValueError("is cut in its header")
        if tag[1] == b"pp_header":
            header = dict(_ELEMENT.findall(content.decode("latin-1")))
            whole = b"</qe_pp:pseudo>" in body
        else:
            header = _version_1_fields(content.decode("latin-1"), info=data[:info_end], body=body)
            # PP_RHOATOM is the last section that every file has; PP_ADDINFO (spin-orbit) and PP_GIPAW... follow it.
            whole = b"</PP_RHOATOM>" in body and body.count(b"<PP_") == body.count(b"</PP_")
    if not whole:
        raise ValueError("is cut before its end")
    # The plain search comes first: on a megabyte it is several times faster than the regular expression.
    lowered = body.lower()
    if any(word in lowered for word in (b"nan", b"inf", b"***", b"\0")) and (bad := _NOT_A_NUMBER.search(lowered)):
        line = data.count(b"\n", 0, len(data) - len(body) + bad.start()) + 1
        raise ValueError(f"has {bad[0].decode()!r} instead of a number in line {line}")
    return header


def _version_1_fields(text: str, info: bytes, body: bytes) -> dict[str, str]:
    """Take the free-form lines one after the other, as pw.x does (`read_upf_v1.f90`)."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 8:
        raise ValueError("has an incomplete header")
    first = [line.split()[0] for line in lines]
    relativistic = re.search(rb"generated with a (\w+)-Relativistic", info)
    return {
        "element": first[1],
        "pseudo_type": first[2],
        "functional": lines[4][:20],  # the short name follows in column 24
        "z_valence": first[5],
        "total_psenergy": first[6],
        "wfc_cutoff": first[7],
        "rho_cutoff": " ".join(lines[7].split()[1:2]),
        "relativistic": relativistic[1].decode() if relativistic else "no",
        "has_so": "T" if b"<PP_ADDINFO>" in body else "F",
    }


def _number(header: Mapping[str, str], key: str) -> float:
    text = header.get(key, "0").strip()
    try:
        value = float(text.upper().replace("D", "E"))  # Fortran may write 4.0D+00
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must have a number for {key} in its header, got {text!r}")
    return value


def _is_true(header: Mapping[str, str], key: str) -> bool:
    return header.get(key, "").strip(" .").upper() in ("T", "TRUE", "1")


def _type(header: Mapping[str, str]) -> str:
    # The flags decide, as in pw.x.
    text = header.get("pseudo_type", header.get("type", "")).strip().upper()
    kind = "PAW" if _is_true(header, "is_paw") else "US" if _is_true(header, "is_ultrasoft") else _TYPES.get(text)
    if kind is None:
        raise ValueError(f"must have one of {', '.join(_TYPES)} as pseudo_type in its header, got {text!r}")
    return kind


def _functional(text: str) -> str:
    plain = " ".join(text.upper().split())
    return _SHORT_NAMES.get(" ".join(re.split("[ +-]+", plain)), plain)  # also SLA-PW-PBX-PBC and sla+pw+pbx+pbc


def _relativistic(header: Mapping[str, str]) -> str:
    text = header.get("relativistic", "").strip().lower()
    if _is_true(header, "has_so") or text.startswith("full"):
        return "full"
    return "scalar" if text.startswith("scalar") else "no"
