"""Conversion factors from QE's units."""

# CODATA 2018. The 2006 set would shift a 1000 Ry total energy by about 1 meV, so a data set never mixes them.
HARTREE = 27.211386245988  # eV
RYDBERG = HARTREE / 2  # eV
BOHR = 0.529177210903  # Å
