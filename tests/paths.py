"""Where the recorded runs and the pseudopotentials of the tests are."""

from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).parent / "files"
PSEUDO_DIR = Path("/usr/share/espresso/pseudo")
# LDA files of Debian's quantum-espresso-data: one functional, so that every mixture is allowed.
PSEUDOPOTENTIALS = {
    "Al": "Al.pz-vbc.UPF",
    "Fe": "Fe.pz-nd-rrkjus.UPF",
    "H": "H.pz-vbc.UPF",
    "Ni": "Ni.pz-nd-rrkjus.UPF",
    "O": "O.pz-rrkjus.UPF",
    "Si": "Si.pz-vbc.UPF",
}
