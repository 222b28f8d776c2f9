"""What the accuracies of an SCF say of its way: whether it gains, stands still, or diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence

# An SCF that gained less than this in its last iterations stands still, and more of the same is in vain.
GAIN_WINDOW = 20  # iterations
GAIN_DECADES = 0.3
# A hopeless SCF: at this pace four decades would take 240 iterations. Of 95 recorded SCF runs that converge (26 of them
# in 30 iterations or more) it would have stopped none, of 35 that do not, 24, with 21 of their 80 iterations to spare.
# Reaching for more costs what can be solved: from iteration 25 on with a window of 20 it stops four that converge, and
# without the limit of accuracy a slab that arrives after 114.
HOPELESS_FROM = 50  # iterations
HOPELESS_WINDOW = 30  # iterations
HOPELESS_GAIN = 0.5  # decades of accuracy in the window
HOPELESS_ABOVE = 1e-5  # Ry; what has come nearer than this may still arrive
# A diverging SCF. An error of 1 Ry for each valence electron is as large as what binds it: such a density is not on the
# way to anything. Many runs that converge jump there once, to 5 Ry, in their second iteration; in four iterations in a
# row none of the 305 had more than 0.12 Ry at its best, and those with more than 1 Ry did not converge.
DIVERGED_ABOVE = 1.0  # Ry per valence electron
DIVERGED_ITERATIONS = 4


def is_gaining(scf_accuracy: Sequence[float]) -> bool:
    """Whether an SCF (accuracies in Ry, oldest first) still gained at its end, so that more iterations may end it."""
    window = min(GAIN_WINDOW, len(scf_accuracy) // 2)
    if window < 1:
        return False
    before, last = min(scf_accuracy[:-window]), min(scf_accuracy[-window:])
    if not (before > 0 and last > 0):
        return False
    return math.log10(before / last) >= GAIN_DECADES * window / GAIN_WINDOW


def is_hopeless(scf_accuracy: Sequence[float]) -> bool:
    """Whether an SCF (accuracies in Ry after each iteration so far, oldest first) stands still far from its end."""
    if len(scf_accuracy) < HOPELESS_FROM or not min(scf_accuracy) > HOPELESS_ABOVE:
        return False
    before, last = min(scf_accuracy[:-HOPELESS_WINDOW]), min(scf_accuracy[-HOPELESS_WINDOW:])
    return math.log10(before / last) < HOPELESS_GAIN


def is_diverging(scf_accuracy: Sequence[float], n_electrons: float) -> bool:
    """Whether an SCF (accuracies in Ry, oldest first) has left what `n_electrons` valence electrons can be."""
    last = scf_accuracy[-DIVERGED_ITERATIONS:]
    return len(last) == DIVERGED_ITERATIONS and min(last) > DIVERGED_ABOVE * n_electrons
