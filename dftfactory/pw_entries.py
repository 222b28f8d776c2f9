"""The `pw` part of dft.yaml: which parameters of pw.x may stand there, and which of them define the label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dftfactory.settings import Problem, is_finite_number, problems_error, unknown_elements

# Names that `write_pw_input` or the recovery sets; an entry of `pw` must not move them behind their back.
MANDATORY = {"tprnfor", "tstress", "disk_io"}
RESERVED = {
    "control": {
        *MANDATORY,
        *("calculation", "prefix", "outdir", "wfcdir", "pseudo_dir"),
        *("restart_mode", "max_seconds", "verbosity", "nstep"),
        # Other files that pw.x would read, write or trust.
        *("input_xml_schema_file", "lfcp", "lfcpopt", "tqmmm", "trism"),
    },
    "system": {
        *("ibrav", "nat", "ntyp", "celldm", "a", "b", "c", "cosab", "cosac", "cosbc"),
        *("ecutwfc", "ecutrho", "occupations", "smearing", "degauss", "nspin", "starting_magnetization"),
        *("noncolin", "lspinorb", "dmft", "dmft_prefix"),
    },
    "electrons": {
        "efield_phase",  # reads a file
        *("conv_thr", "electron_maxstep", "mixing_beta", "mixing_mode", "diagonalization"),
        *("scf_must_converge", "adaptive_thr", "startingpot"),
    },
}
# The way to the number and not the number: left out of the config hash and the fingerprint. `nbnd` is not among them:
# more bands change nothing, too few do.
NUMERICAL = {
    *("mixing_ndim", "mixing_fixed_ns", "startingwfc", "diago_thr_init", "diago_full_acc"),
    *("diago_david_ndim", "diago_cg_maxiter", "diago_ppcg_maxiter", "nosym", "noinv"),
    *("title", "iprint", "wf_collect", "lkpoint_dir"),
}
# One value for each kind of atom. pw.x numbers the kinds of one structure, and Fe is the first here and the second
# there: they are given by element.
BY_ELEMENT = {
    *("hubbard_u", "hubbard_j0", "hubbard_alpha", "hubbard_beta"),
    *("starting_charge", "london_c6", "london_rvdw"),
}
# Of these one index of several counts the kinds: there is no way to give them for a whole data set.
BY_KIND = {"hubbard_j", "hubbard_occ", "starting_ns_eigenvalue"}
# How a group of names begins → what switches it on. Without its switch pw.x ignores such a parameter, silently.
SWITCHES: dict[tuple[str, ...], dict[str, set[bool | str]]] = {
    ("hubbard_", "lda_plus_u_kind", "u_projection_type"): {"lda_plus_u": {True}},
    ("london_",): {"vdw_corr": {"dft-d", "grimme-d2"}, "london": {True}},
    ("dftd3_",): {"vdw_corr": {"dft-d3", "grimme-d3"}},
    ("ts_vdw_",): {"vdw_corr": {"ts", "ts-vdw", "tkatchenko-scheffler"}, "ts_vdw": {True}},
    ("xdm_",): {"vdw_corr": {"xdm"}, "xdm": {True}},
    ("esm_",): {"assume_isolated": {"esm"}},
}

# With these pw.x 6.7 computes no stress, without which there is no label: isolated systems, electric fields, gates.
NO_STRESS: dict[str, set[str] | None] = {
    "assume_isolated": {"makov-payne", "m-p", "mp", "martyna-tuckerman", "m-t", "mt"},
    **dict.fromkeys(("tefield", "dipfield", "edir", "emaxpos", "eopreg", "eamp", "gate", "zgate")),
}

# Characters; what pw.x has room for in most of its words.
_TEXT_LENGTH = 80

_NAME = re.compile(r"([a-z_][a-z0-9_]*)(\([0-9]+(?:,[0-9]+)*\))?")
_FORTRAN = re.compile(r"\.(true|false|t|f)\.|yes|no|on|off|[-+]?[0-9.]+d[-+]?[0-9]+", re.IGNORECASE)


def checked_entries(value: Any) -> dict[str, dict[str, Any]]:
    """Return namelist → keyword → value, all names in lower case and without blanks.

    Where there is a Hubbard parameter there is `lda_plus_u`, which the label has in its name from then on.

    Raises
    ------
    PydanticCustomError
        Lists everything that pw.x or dftfactory could not take as it is meant.
    """
    entries: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    if not isinstance(value, dict):
        raise ValueError(f"must have a part for each namelist ({', '.join(RESERVED)})")
    for written, keys in value.items():
        namelist = re.sub(r"[&\s]", "", str(written)).lower()
        if namelist not in RESERVED:
            problems.append((str(written), keys, f"is none of the namelists {', '.join(RESERVED)}"))
        elif not isinstance(keys, dict):
            problems.append((str(written), keys, "must be `key: value` pairs"))
        else:
            known = entries.setdefault(namelist, {})
            for key, entry in keys.items():
                name = re.sub(r"\s+", "", str(key)).lower()
                problems += [
                    (".".join([str(written), str(key), *([below] if below else [])]), bad, text)
                    for below, bad, text in _problems(namelist, name, entry, known)
                ]
                known[name] = dict(entry) if isinstance(entry, dict) else entry
    system = entries.get("system", {})
    if "lda_plus_u" not in system and any(name.startswith("hubbard_") for name in system):
        system["lda_plus_u"] = True
    problems += _switched_off(entries)
    problems += _without_stress(entries)
    if problems:
        raise problems_error(problems)
    return {namelist: keys for namelist, keys in entries.items() if keys}


def label_entries(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the entries that define the number which is computed; 1 and 1.0 are the same."""
    kept = {
        namelist: {key: _number_as_float(value) for key, value in sorted(keys.items()) if key not in NUMERICAL}
        for namelist, keys in sorted(entries.items())
    }
    return {namelist: keys for namelist, keys in kept.items() if keys}


def _problems(namelist: str, name: str, entry: Any, known: Mapping[str, Any]) -> Iterator[Problem]:
    match = _NAME.fullmatch(name)
    if match is None:
        yield "", entry, "is not the name of a parameter of pw.x"
        return
    base, index = match.groups()
    if base in MANDATORY:
        yield "", entry, "is always written by dftfactory and cannot be overridden here"
    elif base in RESERVED[namelist]:
        yield "", entry, "is set by dftfactory itself and cannot be overridden here"
    elif name in known:
        yield "", entry, "is given twice"
    elif base in BY_KIND:
        yield "", entry, "numbers the kinds of atom, which differ from structure to structure; it cannot be given"
    elif base in BY_ELEMENT and (index or not isinstance(entry, dict) or not entry):
        yield "", entry, f"must be given by element, such as `{base}: {{Fe: 4.6}}`"
    elif isinstance(entry, dict):
        if base not in BY_ELEMENT:
            yield "", entry, "must be one value; only " + ", ".join(sorted(BY_ELEMENT)) + " are given by element"
        yield from unknown_elements(entry)
        yield from (
            (str(key), number, "must be a number") for key, number in entry.items() if not is_finite_number(number)
        )
    else:
        yield from _scalar_problems(entry)


def _switched_off(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Problems of parameters that pw.x would read and not use."""
    given = {name: entry for keys in entries.values() for name, entry in keys.items()}
    switched = {name: entry.lower() if isinstance(entry, str) else entry for name, entry in given.items()}
    for namelist, keys in entries.items():
        for name, entry in keys.items():
            for prefixes, switches in SWITCHES.items():
                if name.startswith(prefixes) and not any(switched.get(s) in on for s, on in switches.items()):
                    switch, values = next(iter(switches.items()))
                    value = str(sorted(values, key=str)[0]).replace("True", "true")
                    yield f"{namelist}.{name}", entry, f"does nothing without `{switch}: {value}`"


def _without_stress(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for namelist, keys in entries.items():
        for name, entry in keys.items():
            values = NO_STRESS.get(name, set())
            if values is None or (isinstance(entry, str) and entry.lower() in values):
                yield f"{namelist}.{name}", entry, "cannot be used, since pw.x computes no stress with it"


def _scalar_problems(entry: Any) -> Iterator[Problem]:
    if isinstance(entry, str):
        if not re.fullmatch(r"[^'\"\x00-\x1f\x7f]*", entry):
            yield "", entry, "must be text without quotes and line breaks"
        elif _FORTRAN.fullmatch(entry):
            yield "", entry, "must be written as in YAML: true, false, 1e-5"
        elif re.search(r"[/\\]|^[.~]", entry) or len(entry) > _TEXT_LENGTH:
            yield "", entry, f"must be a word of pw.x, not a path, and of {_TEXT_LENGTH} characters at most"
    elif not (isinstance(entry, bool) or is_finite_number(entry)):
        yield "", entry, "must be true, false, a finite number or text"


def _number_as_float(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: float(number) for key, number in sorted(value.items())}
    return float(value) if is_finite_number(value) else value
