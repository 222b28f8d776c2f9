"""The ladder and the rungs: what follows after which failure, and what holds for every sequence of them."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftfactory.config import DFTConfig
from dftfactory.failures import Failure
from dftfactory.inputs import NAMELIST_OF, prescribed_parameters
from dftfactory.recovery import LADDER, STRATEGIES, get_next_params, get_next_stage, get_recovery_strategy
from dftfactory.rungs import SOLVERS
from dftfactory.runner import MAX_CORRECTIONS

# What a calculation of four atoms begins with.
CONFIGURED = {
    **prescribed_parameters(DFTConfig(ecutwfc=30, conv_thr_per_atom=2.5e-10), 4),
    "nspin": 1,
    "parallel_cores": 8,
    "npool": 4,
}
SPIN = {**CONFIGURED, "nspin": 2}
HOPELESS = (
    Failure.ENVIRONMENT,
    Failure.INPUT_ERROR,
    Failure.PSEUDOPOTENTIAL,
    Failure.GEOMETRY,
    Failure.SOFT_STOP,
)
SCF = Failure.SCF_NOT_CONVERGED
# The rules are tested on a ladder of their own: tuning the built-in one does not change them.
THREE = (
    {"name": "soft mixing", "mixing_beta": 0.3, "mixing_mode": "plain"},
    {"name": "robust solver", "mixing_beta": 0.3, "mixing_mode": "plain", "diagonalization": "cg"},
    {
        "name": "high temperature",
        "sooner_with_spin": True,
        "mixing_mode": "local-TF",
        "mixing_ndim": 20,
        "anneal": ({"degauss_above": 0.04, "conv_thr": 1e-4}, {"degauss_above": 0.01, "conv_thr": 1e-5}, {}),
    },
)


def fail(parameters: dict, failure: Failure, ladder=THREE, **observed) -> dict | None:
    """Return what follows when a run with these parameters fails; a SCF of which nothing is observed climbs."""
    return get_next_params(
        {**parameters, **observed}, failure, parameters["level"], configured=_configured(parameters), ladder=ladder
    )


def converge(parameters: dict, ladder=THREE) -> dict | None:
    """Return what follows when a run with these parameters converges."""
    return get_next_stage(parameters, configured=_configured(parameters), ladder=ladder)


def _configured(parameters: dict) -> dict:
    return SPIN if parameters["nspin"] == 2 else CONFIGURED


def levels_to_the_end(parameters: dict, ladder=THREE, **observed) -> list[int]:
    """Return the level of each run from this one on, if every SCF fails."""
    levels = [parameters["level"]]
    while parameters := fail(parameters, SCF, ladder, **observed):
        levels.append(parameters["level"])
    return levels


def shown(parameters: dict, *names: str) -> dict:
    return {name: parameters.get(name) for name in names}


@pytest.fixture
def level_0() -> dict:
    return {**CONFIGURED, "level": 0}


@pytest.fixture
def with_spin() -> dict:
    return {**SPIN, "level": 0}


# The climb


def test_after_an_scf_failure_at_beta_0_7_the_next_attempt_has_0_3():
    following = get_next_params({"mixing_beta": 0.7, "degauss": 0.02}, Failure.SCF_NOT_CONVERGED, 0)

    assert following["mixing_beta"] == 0.3
    assert following["level"] == 1


def test_the_built_in_ladder_mixes_softly_then_takes_cg_and_then_anneals():
    soft, robust, hot = LADDER
    assert (soft["mixing_beta"], robust["mixing_beta"]) == (0.3, 0.3)
    assert "diagonalization" not in soft
    assert robust["diagonalization"] == "cg"
    assert hot["anneal"][-1] == {}
    assert hot["anneal"][0]["degauss_above"] > hot["anneal"][1]["degauss_above"]


def test_the_whole_climb(level_0):
    """Each value of the table, to the end: nothing that it does not name may move."""
    names = ("level", "mixing_beta", "mixing_mode", "diagonalization", "degauss", "conv_thr", "startingpot")
    assert list(shown(level_0, *names).values()) == [0, 0.7, "local-TF", "david", 0.02, 1e-9, None]

    level_1 = fail(level_0, SCF)
    assert list(shown(level_1, *names).values()) == [1, 0.3, "plain", "david", 0.02, 1e-9, None]

    level_2 = fail(level_1, SCF)
    assert list(shown(level_2, *names).values()) == [2, 0.3, "plain", "cg", 0.02, 1e-9, None]

    hot = fail(level_2, SCF)
    assert list(shown(hot, *names).values()) == [3, 0.7, "local-TF", "david", 0.06, 1e-4, None]
    assert (hot["mixing_ndim"], hot["stage"]) == (20, 0)

    warm = converge(hot)
    assert list(shown(warm, *names).values()) == [3, 0.7, "local-TF", "david", 0.03, 1e-5, "file"]
    assert (warm["mixing_ndim"], warm["stage"]) == (20, 1)

    cold = converge(warm)
    assert list(shown(cold, *names).values()) == [3, 0.7, "local-TF", "david", 0.02, 1e-9, "file"]
    assert (cold["mixing_ndim"], cold["stage"]) == (20, 2)
    assert converge(cold) is None

    softened = fail(cold, SCF)
    assert list(shown(softened, *names).values()) == [3, 0.7, "local-TF", "david", 0.03, 1e-9, "file"]
    assert softened["softened"] is True
    assert converge(softened) is None
    assert fail(softened, SCF) is None

    for parameters in (level_1, level_2, hot, warm, cold, softened):
        assert shown(parameters, "parallel_cores", "npool", "electron_maxstep") == {
            "parallel_cores": 8,
            "npool": 4,
            "electron_maxstep": 80,
        }


@pytest.mark.parametrize("stage", [0, 1])
def test_an_anneal_that_fails_before_its_last_stage_leaves_nothing(level_0, stage):
    parameters = fail(fail(fail(level_0, SCF), SCF), SCF)
    for _ in range(stage):
        parameters = converge(parameters)

    assert parameters["stage"] == stage
    assert fail(parameters, SCF) is None


def test_a_loose_stage_is_not_tighter_than_the_prescribed_accuracy(level_0):
    """1e-6 Ry per atom in a cell of 200 atoms is looser than the 1e-4 of the hot stage."""
    loose = {**CONFIGURED, "conv_thr": 2e-4}
    hot = get_next_params({**loose, "level": 2}, SCF, 2, configured=loose)

    assert hot["conv_thr"] == 2e-4


def test_converging_outside_an_anneal_has_no_next_stage(level_0):
    assert converge(level_0) is None
    assert converge(fail(level_0, SCF)) is None


def test_a_level_that_repeats_another_one_is_left_out(level_0):
    """A user who begins softly and plainly has had level 1 already."""
    softly = {**CONFIGURED, "mixing_beta": 0.3, "mixing_mode": "plain"}
    following = get_next_params({**softly, "level": 0}, SCF, 0, configured=softly, ladder=THREE)

    assert shown(following, "level", "diagonalization") == {"level": 2, "diagonalization": "cg"}


def test_after_memory_has_led_to_cg_soft_mixing_and_the_robust_solver_are_one_level(level_0):
    frugal = fail(fail(fail(level_0, Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY)
    soft = fail(frugal, SCF)
    assert shown(soft, "level", "mixing_beta", "diagonalization") == {
        "level": 1,
        "mixing_beta": 0.3,
        "diagonalization": "cg",
    }
    assert fail(soft, SCF)["level"] == 3


# The order of the climb


def test_without_spin_the_levels_follow_in_their_order(level_0):
    assert levels_to_the_end(level_0) == [0, 1, 2, 3]
    assert levels_to_the_end(level_0, diverged=False) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_with_spin_the_anneal_comes_first(with_spin):
    assert levels_to_the_end(with_spin) == [0, 3, 1, 2]
    assert levels_to_the_end(with_spin, diverged=False) == [0, 0, 3, 3, 1, 1, 2, 2]
    assert levels_to_the_end(with_spin, LADDER) == [0, 3, 1, 2]


def test_the_level_after_an_anneal_has_nothing_of_it(with_spin):
    hot = fail(with_spin, SCF)
    soft = fail(hot, SCF)
    assert shown(soft, "level", "stage", "degauss", "conv_thr", "mixing_beta", "mixing_ndim", "startingpot") == {
        "level": 1,
        "stage": None,
        "degauss": 0.02,
        "conv_thr": 1e-9,
        "mixing_beta": 0.3,
        "mixing_ndim": None,
        "startingpot": None,
    }
    assert soft["climbed"] == [3, 1]


def test_a_solver_that_leads_past_the_anneal_does_not_cost_it(with_spin):
    """At level 1 there is nothing left that the solver has not led to: soft mixing, with the solver that works."""
    robust = fail(with_spin, Failure.DIAGONALIZATION)
    assert robust["level"] == 2
    assert levels_to_the_end(robust) == [2, 3]
    assert fail(robust, SCF)["diagonalization"] == "cg"


def test_a_solver_that_fails_in_the_anneal_stays_there(with_spin):
    hot = fail(fail(with_spin, SCF), Failure.DIAGONALIZATION)
    assert shown(hot, "level", "stage", "diagonalization") == {"level": 3, "stage": 0, "diagonalization": "cg"}
    assert levels_to_the_end(hot) == [3, 1]  # where level 2 would be the same


def test_a_user_s_ladder_has_the_order_that_it_asks_for(with_spin):
    betas = [{"name": f"beta {beta}", "mixing_beta": beta} for beta in (0.5, 0.4, 0.3)]
    betas[1]["sooner_with_spin"] = True
    ladder = json.loads(json.dumps(DFTConfig(ecutwfc=30, ladder=betas).to_dict()["ladder"]))
    assert levels_to_the_end(with_spin, ladder) == [0, 2, 1, 3]
    assert levels_to_the_end(with_spin | {"nspin": 1}, ladder) == [0, 1, 2, 3]
    assert "sooner_with_spin" not in fail(with_spin, SCF, ladder)
    assert levels_to_the_end(with_spin, [{"mixing_beta": 0.5}, {"mixing_beta": 0.4}]) == [0, 1, 2]


def test_the_robust_level_is_not_entered_again_for_another_solver(with_spin):
    """The user's ladder has it before a level of its own, with another mixing."""
    ladder = (
        {"mixing_beta": 0.5},
        {"mixing_beta": 0.3, "diagonalization": "cg", "sooner_with_spin": True},
    )
    robust = fail(with_spin, SCF, ladder)
    assert robust["level"] == 2
    soft = fail(robust, SCF, ladder)
    following = fail(soft, Failure.DIAGONALIZATION, ladder)
    assert shown(following, "level", "diagonalization", "mixing_beta") == {
        "level": 1,
        "diagonalization": "cg",
        "mixing_beta": 0.5,
    }


# The end of the climb with spin


@pytest.fixture
def cooled(with_spin) -> dict:
    """Only the last stage of the anneal has failed, and so have the levels after it."""
    last_stage = converge(converge(fail(with_spin, SCF)))
    return fail(fail(last_stage, SCF), SCF)


def test_an_anneal_whose_last_stage_has_failed_is_repeated_at_the_end_softened(cooled):
    assert shown(cooled, "level", "cooled", "softening") == {"level": 2, "cooled": 3, "softening": None}
    hot = fail(cooled, SCF)
    warm = converge(hot)
    softened = converge(warm)
    names = ("level", "stage", "degauss", "conv_thr", "startingpot", "softened")
    assert [tuple(shown(parameters, *names).values()) for parameters in (hot, warm, softened)] == [
        (3, 0, 0.06, 1e-4, None, None),
        (3, 1, 0.03, 1e-5, "file", None),
        (3, 2, 0.03, 1e-9, "file", True),
    ]
    assert converge(softened) is None


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_after_the_softened_anneal_there_is_nothing(cooled, stages):
    parameters = fail(cooled, SCF)
    for _ in range(stages):
        parameters = converge(parameters)
    assert fail(parameters, SCF) is None
    continued = fail(parameters, SCF, diverged=False)
    assert shown(continued, "stage", "softened") == shown(parameters, "stage", "softened")
    assert fail(continued, SCF, diverged=False) is None


@pytest.mark.parametrize("stage", [0, 1])
def test_an_anneal_that_has_failed_before_its_last_stage_is_not_repeated(with_spin, stage):
    parameters = fail(with_spin, SCF)
    for _ in range(stage):
        parameters = converge(parameters)
    assert levels_to_the_end(parameters) == [3, 1, 2]


@pytest.mark.parametrize("failure", [Failure.DIAGONALIZATION, Failure.NAN, Failure.BAD_RESTART, Failure.HANG])
def test_what_begins_the_softened_anneal_anew_does_not_forget_how_it_ends(cooled, failure):
    softened = converge(converge(fail(cooled, SCF)))
    hot = fail(softened, failure)
    assert shown(hot, "level", "stage", "degauss", "startingpot", "softened") == {
        "level": 3,
        "stage": 0,
        "degauss": 0.06,
        "startingpot": None,
        "softened": None,
    }
    assert shown(converge(converge(hot)), "degauss", "softened") == {"degauss": 0.03, "softened": True}


def test_a_softened_anneal_does_not_leave_its_level_for_another_solver(with_spin):
    ladder = (
        {"anneal": ({"degauss_above": 0.03}, {})},
        # Nothing that the user's own parameters do not have: never entered for its own sake.
        {"diagonalization": "david"},
    )
    last_stage = converge(fail(with_spin, SCF, ladder), ladder)
    softened = fail(last_stage, SCF, ladder)
    assert softened["softened"]
    following = fail(softened, Failure.DIAGONALIZATION, ladder)
    assert shown(following, "level", "stage", "diagonalization") == {"level": 1, "stage": 0, "diagonalization": "cg"}
    assert converge(following, ladder)["softened"]


def test_a_softened_stage_goes_on_from_the_density_of_the_only_hot_one(with_spin):
    ladder = ({"anneal": ({"degauss_above": 0.03}, {}), "sooner_with_spin": True}, {"mixing_beta": 0.3})
    last_stage = converge(fail(with_spin, SCF, ladder), ladder)
    hot = fail(fail(last_stage, SCF, ladder), SCF, ladder)
    assert shown(hot, "level", "stage", "startingpot") == {"level": 1, "stage": 0, "startingpot": None}
    softened = converge(hot, ladder)
    assert shown(softened, "degauss", "softened", "startingpot") == {
        "degauss": 0.05,
        "softened": True,
        "startingpot": "file",
    }


# Going on from the saved density


@pytest.mark.parametrize("observed", [{"gaining": True}, {"gaining": True, "diverged": False}, {"diverged": False}])
def test_an_scf_that_has_not_converged_is_continued_once_at_its_level(level_0, observed):
    continued = fail(level_0, SCF, **observed)
    assert shown(continued, "level", "startingpot", "mixing_beta") == {
        "level": 0,
        "startingpot": "file",
        "mixing_beta": 0.7,
    }

    climbed = fail(continued, SCF, **observed)
    assert shown(climbed, "level", "startingpot", "continued") == {"level": 1, "startingpot": None, "continued": None}

    assert fail(climbed, SCF, **observed)["level"] == 1  # each level has its own


def test_an_scf_that_stood_still_is_continued_too(level_0):
    """3 of 5 that stood still went on from an empty mixing history, and converged."""
    continued = fail(level_0, SCF, gaining=False, diverged=False)
    assert shown(continued, "level", "startingpot") == {"level": 0, "startingpot": "file"}


def test_an_scf_that_stood_still_far_from_its_end_is_continued_at_level_0_only(level_0, with_spin):
    hopeless = {"gaining": False, "hopeless": True, "diverged": False}
    assert shown(fail(level_0, SCF, **hopeless), "level", "startingpot") == {"level": 0, "startingpot": "file"}
    assert levels_to_the_end(level_0, **hopeless) == [0, 0, 1, 2, 3]
    assert levels_to_the_end(with_spin, **hopeless) == [0, 0, 3, 1, 2]


@pytest.mark.parametrize("gaining", [True, False])
def test_an_scf_that_has_diverged_climbs_at_once(level_0, gaining):
    """Its density is no start, not even where it came down from 1000 Ry to 100."""
    following = fail(level_0, SCF, gaining=gaining, diverged=True)
    assert shown(following, "level", "startingpot") == {"level": 1, "startingpot": None}


def test_an_scf_of_which_nothing_is_known_climbs(level_0):
    assert fail(level_0, SCF, gaining=False)["level"] == 1
    assert fail(level_0, SCF)["level"] == 1


def test_each_stage_of_an_anneal_is_continued_once(level_0):
    parameters = fail(fail(fail(level_0, SCF), SCF), SCF)
    for stage in (0, 1, 2):
        continued = fail(parameters, SCF, gaining=True)
        assert shown(continued, "stage", "degauss", "conv_thr") == shown(parameters, "stage", "degauss", "conv_thr")
        assert continued["startingpot"] == "file"
        assert parameters["stage"] == stage
        parameters = converge(continued) or continued
    assert fail(parameters, SCF, gaining=True)["softened"]


def test_a_softened_attempt_is_continued_once(level_0):
    parameters = fail(fail(fail(level_0, SCF), SCF), SCF)
    softened = fail(converge(converge(parameters)), SCF)

    continued = fail(softened, SCF, gaining=True)
    assert shown(continued, "softened", "degauss") == {"softened": True, "degauss": 0.03}
    assert fail(continued, SCF, gaining=True) is None


def test_what_was_observed_does_not_travel_on(level_0):
    for diverged in (True, False):
        seen = {"gaining": True, "hopeless": True, "diverged": diverged, "n_bands": 12, "lost_fermi_level": True}
        assert set(seen).isdisjoint(fail(level_0, SCF, **seen))


# The other failures


@pytest.mark.parametrize("failure", HOPELESS)
def test_what_no_rung_can_cure_gives_up_at_once(level_0, failure):
    assert get_recovery_strategy(failure) == ()
    assert fail(level_0, failure) is None


@pytest.mark.parametrize("failure", [failure for failure in Failure if failure not in HOPELESS])
def test_all_others_have_a_rung(failure):
    assert get_recovery_strategy(failure)


@pytest.mark.parametrize(
    "failure",
    [f for f in STRATEGIES if f not in (SCF, Failure.DIAGONALIZATION, Failure.NAN)],
)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_only_the_scf_and_the_solver_move_the_level(level_0, failure, level):
    parameters = level_0
    for _ in range(level):
        parameters = fail(parameters, SCF)

    following = fail(parameters, failure, n_bands=10)

    assert following["level"] == level
    label = ("degauss", "conv_thr", "mixing_beta")
    assert shown(following, *label) == shown(parameters, *label)


def test_out_of_memory_takes_the_cheapest_remedy_first(level_0):
    one_pool = fail(level_0, Failure.OUT_OF_MEMORY)
    assert shown(one_pool, "npool", "parallel_cores", "diago_david_ndim") == {
        "npool": 1,
        "parallel_cores": 8,
        "diago_david_ndim": None,
    }
    small = fail(one_pool, Failure.OUT_OF_MEMORY)
    assert shown(small, "npool", "diago_david_ndim", "mixing_ndim", "diagonalization") == {
        "npool": 1,
        "diago_david_ndim": 2,
        "mixing_ndim": 4,
        "diagonalization": "david",
    }
    frugal = fail(small, Failure.OUT_OF_MEMORY)
    assert frugal["diagonalization"] == "cg"
    assert fail(frugal, Failure.OUT_OF_MEMORY) is None


def test_a_mixing_history_that_is_short_already_is_not_made_longer(level_0):
    one_pool = fail({**level_0, "mixing_ndim": 3}, Failure.OUT_OF_MEMORY)
    assert fail(one_pool, Failure.OUT_OF_MEMORY)["mixing_ndim"] == 3


def test_nothing_goes_back_to_the_solver_that_memory_was_too_small_for(level_0):
    parameters = fail(fail(fail(level_0, Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY)
    while parameters := fail(parameters, Failure.DIAGONALIZATION):
        assert parameters["diagonalization"] in ("paro", "ppcg")


def test_a_rung_that_would_change_nothing_is_skipped(level_0):
    following = fail({**level_0, "npool": 1}, Failure.OUT_OF_MEMORY)
    assert following["diago_david_ndim"] == 2


def test_a_layout_that_does_not_fit_shrinks_to_one_rank(level_0):
    parameters, layouts = level_0, []
    while parameters := fail(parameters, Failure.PARALLELIZATION):
        layouts.append((parameters["parallel_cores"], parameters["npool"]))

    assert layouts == [(8, 2), (8, 1), (4, 1), (2, 1), (1, 1)]


def test_ranks_that_share_a_matrix_are_a_square_that_the_pool_has(level_0):
    """Where the layout names them; pw.x chooses otherwise."""
    parameters, sharing = {**level_0, "parallel_cores": 16, "npool": 1, "ndiag": 16}, []
    while parameters := fail(parameters, Failure.PARALLELIZATION):
        sharing.append((parameters["parallel_cores"], parameters["ndiag"]))

    assert sharing == [(8, 4), (4, 4), (2, 1), (1, 1)]
    assert "ndiag" not in fail({**level_0, "npool": 1}, Failure.PARALLELIZATION)


def test_pools_always_divide_the_ranks(level_0):
    six = fail({**level_0, "parallel_cores": 12, "npool": 6}, Failure.PARALLELIZATION)
    assert six["npool"] == 4


def test_what_memory_and_layout_needed_outlives_a_climb(level_0):
    parameters = fail(fail(level_0, Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY)
    parameters = fail(parameters, Failure.SYMMETRY)
    for _ in range(3):
        parameters = fail(parameters, SCF)
        assert shown(parameters, "npool", "diago_david_ndim", "mixing_ndim", "nosym") == {
            "npool": 1,
            "diago_david_ndim": 2,
            "mixing_ndim": 4,
            "nosym": True,
        }


def test_a_solver_that_fails_is_followed_by_one_not_yet_tried(level_0):
    """At the level of the robust solver: soft mixing too."""
    following = fail(level_0, Failure.DIAGONALIZATION)
    assert shown(following, "level", "diagonalization", "mixing_beta", "mixing_mode") == {
        "level": 2,
        "diagonalization": "cg",
        "mixing_beta": 0.3,
        "mixing_mode": "plain",
    }
    solvers = []
    while following := fail(following, Failure.DIAGONALIZATION):
        solvers.append((following["diagonalization"], following["diago_david_ndim"]))
        assert following["level"] == 2
    assert solvers == [("david", 4), ("paro", 4), ("ppcg", 4)]


def test_a_larger_subspace_is_not_tried_where_memory_has_made_it_small(level_0):
    small = fail(fail(level_0, Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY)
    robust = fail(small, Failure.DIAGONALIZATION)
    assert shown(robust, "diagonalization", "diago_david_ndim") == {"diagonalization": "cg", "diago_david_ndim": 2}
    assert fail(robust, Failure.DIAGONALIZATION)["diagonalization"] == "paro"


def test_a_solver_that_fails_on_a_saved_density_leaves_that_behind_too(level_0):
    """What is wrong with the density may be what the solver stumbled over."""
    hot = fail(fail(fail(level_0, SCF), SCF), SCF)
    following = fail(converge(hot), Failure.DIAGONALIZATION)
    assert shown(following, "level", "stage", "startingpot", "diagonalization") == {
        "level": 3,
        "stage": 0,
        "startingpot": None,
        "diagonalization": "cg",
    }


def test_a_climb_does_not_go_back_to_a_solver_that_failed(level_0):
    """Level 3 has the user's own solver, which is david; where david failed, cg goes on."""
    robust = fail(level_0, Failure.DIAGONALIZATION)
    hot = fail(robust, SCF)

    assert shown(hot, "level", "stage", "diagonalization", "mixing_mode") == {
        "level": 3,
        "stage": 0,
        "diagonalization": "cg",
        "mixing_mode": "local-TF",
    }


def test_nan_is_tried_once_from_scratch_with_soft_mixing_and_another_solver(level_0):
    following = fail({**level_0, "startingpot": "file", "continued": True}, Failure.NAN)
    assert shown(following, "level", "startingpot", "mixing_beta", "diagonalization") == {
        "level": 2,
        "startingpot": None,
        "mixing_beta": 0.3,
        "diagonalization": "cg",
    }
    assert fail(following, Failure.NAN) is None


def test_nan_in_a_cold_stage_begins_the_anneal_again(level_0):
    """Its density may hold the NaN."""
    cold = converge(converge(fail(fail(fail(level_0, SCF), SCF), SCF)))
    following = fail(cold, Failure.NAN)
    assert shown(following, "level", "stage", "degauss", "startingpot", "diagonalization") == {
        "level": 3,
        "stage": 0,
        "degauss": 0.06,
        "startingpot": None,
        "diagonalization": "cg",
    }


def test_too_few_bands_become_more_from_the_density_that_is_there(level_0):
    following = fail(level_0, Failure.OCCUPATIONS, n_bands=12)
    assert shown(following, "nbnd", "startingpot") == {"nbnd": 16, "startingpot": "file"}  # 1.3 x 12, rounded up
    assert fail(following, Failure.OCCUPATIONS, n_bands=16)["nbnd"] == 21


def test_occupations_that_fail_for_another_reason_give_up(level_0):
    assert fail(level_0, Failure.OCCUPATIONS) is None


def test_a_walltime_resumes_where_it_stopped_and_a_climb_begins_anew(level_0):
    resumed = fail(level_0, Failure.WALLTIME)
    assert shown(resumed, "level", "restart_mode") == {"level": 0, "restart_mode": "restart"}

    assert fail(resumed, SCF).get("restart_mode") is None


def test_where_the_time_of_the_queue_is_over_nothing_is_resumed_in_the_same_job(level_0):
    assert fail(level_0, Failure.WALLTIME)["restart_mode"] == "restart"


def test_a_run_is_resumed_three_times_at_most(level_0):
    parameters, runs = level_0, 0
    while parameters := fail(parameters, Failure.WALLTIME):
        runs += 1
    assert runs == 3


@pytest.mark.parametrize("failure", [f for f in STRATEGIES if f is not Failure.WALLTIME])
def test_only_the_very_next_run_is_a_restart(level_0, failure):
    """Another layout, solver or number of bands cannot go on from wavefunctions that are not its own."""
    resumed = fail(level_0, Failure.WALLTIME)
    assert fail(resumed, failure, gaining=True, n_bands=10).get("restart_mode") is None


def test_the_next_stage_of_a_resumed_one_is_no_restart(level_0):
    hot = fail(fail(fail(fail(level_0, SCF), SCF), SCF), Failure.WALLTIME)
    assert shown(converge(hot), "restart_mode", "startingpot") == {"restart_mode": None, "startingpot": "file"}


def test_a_damaged_saved_state_is_left_behind(level_0):
    continued = fail(level_0, SCF, gaining=True)
    resumed = fail(continued, Failure.WALLTIME)
    fresh = fail(resumed, Failure.BAD_RESTART)

    assert shown(fresh, "startingpot", "restart_mode", "continued") == dict.fromkeys(
        ("startingpot", "restart_mode", "continued")
    )


def test_a_damaged_saved_state_in_a_cold_stage_begins_the_anneal_again(level_0):
    cold = converge(converge(fail(fail(fail(level_0, SCF), SCF), SCF)))
    fresh = fail(cold, Failure.BAD_RESTART)

    assert shown(fresh, "stage", "degauss", "conv_thr", "startingpot") == {
        "stage": 0,
        "degauss": 0.06,
        "conv_thr": 1e-4,
        "startingpot": None,
    }


@pytest.mark.parametrize("failure", [Failure.DISK_FULL, Failure.HANG, Failure.INCOMPLETE_OUTPUT, Failure.SYMMETRY])
def test_a_mishap_of_the_machine_is_repeated_once(level_0, failure):
    again = fail(level_0, failure)
    assert shown(again, *CONFIGURED) == shown(level_0, *CONFIGURED)
    assert fail(again, failure) is None


def test_a_density_that_breaks_every_run_after_it_does_not_end_the_climb(level_0):
    """From scratch the SCF fails as it did, and leaves the same density."""
    continued = fail(level_0, SCF, diverged=False)
    again = fail(continued, Failure.BAD_RESTART)
    assert shown(again, *CONFIGURED, "level", "startingpot") == shown(level_0, *CONFIGURED, "level", "startingpot")
    continued = fail(again, SCF, diverged=False)
    assert continued["startingpot"] == "file"
    assert shown(fail(continued, Failure.BAD_RESTART), "level", "startingpot") == {"level": 1, "startingpot": None}


def test_a_stage_that_cannot_begin_leaves_the_levels_after_the_anneal(with_spin):
    warm = converge(fail(with_spin, SCF))
    hot = fail(warm, Failure.BAD_RESTART)
    assert shown(hot, "level", "stage") == {"level": 3, "stage": 0}
    assert fail(converge(hot), Failure.BAD_RESTART)["level"] == 1


def test_a_killed_run_is_repeated_and_then_once_more_in_one_pool(level_0):
    """The kernel kills what takes too much memory, and nobody tells us."""
    again = fail(level_0, Failure.KILLED)
    assert shown(again, *CONFIGURED) == shown(level_0, *CONFIGURED)
    last = fail(again, Failure.KILLED)
    assert shown(last, "npool", "parallel_cores") == {"npool": 1, "parallel_cores": 8}
    assert fail(last, Failure.KILLED) is None


def test_a_killed_stage_goes_on_from_the_density_of_the_one_before(level_0):
    """pw.x writes its density at the end of the SCF: what the stage before has saved is whole."""
    warm = converge(fail(fail(fail(level_0, SCF), SCF), SCF))
    assert shown(fail(warm, Failure.KILLED), "stage", "startingpot") == {"stage": 1, "startingpot": "file"}


@pytest.mark.parametrize("failure", [Failure.DISK_FULL, Failure.HANG, Failure.INCOMPLETE_OUTPUT])
def test_a_density_that_may_be_cut_is_not_used(level_0, failure):
    continued = fail(level_0, SCF, gaining=True)
    assert shown(fail(continued, failure), "startingpot", "continued") == {"startingpot": None, "continued": None}


# A user's own ladder


def test_a_user_s_ladder_replaces_the_built_in_one(level_0):
    config = DFTConfig(
        ecutwfc=30,
        ladder=[
            {"name": "softer", "mixing_beta": 0.1},
            {"name": "hot", "anneal": [{"degauss_above": 0.05}, {"degauss_above": 0.0}]},
        ],
    )
    ladder = json.loads(json.dumps(config.to_dict()["ladder"]))  # as it stands in history.json

    softer = fail(level_0, SCF, ladder)
    assert shown(softer, "level", "mixing_beta", "mixing_mode") == {
        "level": 1,
        "mixing_beta": 0.1,
        "mixing_mode": "local-TF",
    }
    hot = fail(softer, SCF, ladder)
    assert shown(hot, "level", "mixing_beta", "degauss", "conv_thr") == {
        "level": 2,
        "mixing_beta": 0.7,
        "degauss": 0.07,
        "conv_thr": 1e-9,
    }
    cold = converge(hot, ladder)
    assert shown(cold, "degauss", "startingpot") == {"degauss": 0.02, "startingpot": "file"}
    softened = fail(cold, SCF, ladder)
    assert shown(softened, "degauss", "softened") == {"degauss": 0.07, "softened": True}
    assert fail(softened, SCF, ladder) is None


def test_an_empty_ladder_gives_up_at_once(level_0):
    assert fail(level_0, SCF, ladder=[]) is None


def test_a_robust_level_that_anneals_is_entered_at_its_hot_stage(level_0):
    ladder = [{"name": "all", "diagonalization": "cg", "anneal": [{"degauss_above": 0.03}, {}]}]

    following = fail(level_0, Failure.DIAGONALIZATION, ladder)
    assert shown(following, "level", "stage", "degauss", "diagonalization") == {
        "level": 1,
        "stage": 0,
        "degauss": 0.05,
        "diagonalization": "cg",
    }


# What holds for every history

seen_of_an_scf = st.fixed_dictionaries({name: st.booleans() for name in ("gaining", "hopeless", "diverged")})
events = st.one_of(
    st.tuples(st.just("converged"), st.just({})),
    st.tuples(st.sampled_from(Failure), seen_of_an_scf),
)
starts = st.sampled_from([CONFIGURED, SPIN])
ladders = st.sampled_from([THREE, LADDER])
# After one of these the same run is worth a second try.
MISHAPS = {
    Failure.KILLED,
    Failure.HANG,
    Failure.DISK_FULL,
    Failure.INCOMPLETE_OUTPUT,
    Failure.BAD_RESTART,
    Failure.WALLTIME,
}
LABEL_PARAMETERS = {"degauss", "conv_thr", "smearing", "occupations", "ecutwfc", "ecutrho", "nspin", "pseudo_dir"}


def histories(happened, ladder, start=CONFIGURED):
    """Every pair of an attempt and the next one, as the events bring them about, and what happened between them."""
    parameters = {**start, "level": 0}
    for event, observed in happened:
        before = copy.deepcopy(parameters)
        if event == "converged":
            following = converge(parameters, ladder)
        else:
            following = fail(parameters, event, ladder, **observed, n_bands=10, lost_fermi_level=True)
        assert parameters == before  # the functions are pure
        if following is None:
            return
        yield before, event, following
        parameters = following


def most_attempts(ladder) -> int:
    """Return the most attempts that one calculation can have on a ladder that ends with its only anneal."""
    stages = len(ladder[-1]["anneal"])
    # Every level, every stage and the softened one are begun and continued once, with spin the anneal twice ...
    climb, anneal = 2 * len(ladder) + 2 * stages, 2 * (stages + 1)
    # ... and the anneal begins again each time that a saved state is left behind, or a solver (david twice).
    again = sum(
        rung.times for failure in MISHAPS for rung in STRATEGIES.get(failure, ()) if rung.name == "from scratch"
    )
    again += len(SOLVERS)
    # Fewer pools and ranks: 4 -> 2 -> 1 and 8 -> 4 -> 2 -> 1.
    others = {"fewer pools": 2, "fewer ranks": 3}
    rungs = [
        rung for f, of in STRATEGIES.items() if f not in (SCF, Failure.DIAGONALIZATION, Failure.NAN) for rung in of
    ]
    once = sum(others.get(rung.name, rung.times) for rung in rungs if rung.name not in ("from scratch", "next level"))
    return climb + (1 + again) * anneal + once


@given(st.lists(events, max_size=200), ladders, starts)
def test_every_recovery_ends_and_travels_as_plain_data(happened, ladder, start):
    """Whatever happens to the runs, and however often."""
    steps = list(histories(happened * 3, ladder, start))
    assert len(steps) < most_attempts(ladder)
    for _, _, following in steps:
        assert json.loads(json.dumps(following)) == following  # it lives in history.json
        assert 0 <= following["level"] <= len(ladder)


@given(st.lists(events, max_size=200), ladders, starts)
def test_no_level_is_entered_twice_but_an_anneal_that_is_to_end_softened(happened, ladder, start):
    for before, _, following in histories(happened * 3, ladder, start):
        climbed = [0, *following.get("climbed", [])]
        assert following["level"] == climbed[-1]
        assert before.get("climbed", []) == climbed[1:][: len(before.get("climbed", []))]
        again = [level for level in climbed if climbed.count(level) > 1]
        assert again == ([following["cooled"]] * 2 if again else [])
        if again:
            assert (following["softening"], climbed[-1]) == (True, following["cooled"])
        if start is CONFIGURED:
            assert climbed == sorted(set(climbed))


@given(st.lists(events, max_size=200), ladders, starts)
def test_a_level_begins_from_scratch_and_a_stage_is_continued_once(happened, ladder, start):
    for before, event, following in histories(happened * 3, ladder, start):
        if following.get("climbed") != before.get("climbed"):
            assert not {"startingpot", "continued", "restart_mode", "softened"} & set(following)
        if following.get("continued") and not before.get("continued"):
            assert event is SCF
            assert following["startingpot"] == "file"
            assert following.get("stage") == before.get("stage")
        assert following.get("stage", 0) == 0 or following["startingpot"] == "file"


@given(st.lists(st.tuples(st.sampled_from(Failure), st.just({"gaining": True, "diverged": True})), max_size=60), starts)
def test_a_density_that_has_diverged_is_never_the_start_of_the_same_scf(happened, start):
    for _, event, following in histories(happened, THREE, start):
        assert event is not SCF or "startingpot" not in following


def test_an_scf_that_always_gains_takes_eight_runs_and_the_worst_of_all_fates_is_bounded(level_0):
    parameters, runs = level_0, 1
    while parameters := fail(parameters, SCF, gaining=True):
        runs += 1
    assert runs == 8  # three levels and the hot stage, each continued once
    assert len(levels_to_the_end(level_0, diverged=False)) == 8
    # What custodian allows is only a stop for a table that is wrong: it must not come before the table ends.
    assert most_attempts(THREE) == 102 < MAX_CORRECTIONS


def test_with_spin_an_scf_that_fails_wherever_it_counts_takes_fourteen_runs(with_spin):
    """Three levels of two runs, the anneal with its last stage continued, and once more to a softened end."""
    parameters, runs = with_spin, 1
    while following := (converge(parameters) or fail(parameters, SCF, gaining=False, diverged=False)):
        parameters, runs = following, runs + 1
    assert runs == 6 + 4 + 4
    assert parameters["softened"]


@given(st.lists(events, max_size=60), ladders, starts)
def test_no_rung_moves_a_label_parameter_but_an_anneal_on_its_way(happened, ladder, start):
    for before, event, following in histories(happened, ladder, start):
        moved = {name for name in LABEL_PARAMETERS if following.get(name) != start.get(name)}
        if "smearing" in following:
            # The parser takes it for the same label with a gap, and else for none.
            assert following["smearing"] == "gaussian"
            moved -= {"smearing"}
        assert moved <= {"degauss", "conv_thr"}
        assert following["degauss"] >= CONFIGURED["degauss"]
        assert following["conv_thr"] >= CONFIGURED["conv_thr"]
        if moved:  # on its way: not the last stage, or softened and said so
            stages = ladder[following["level"] - 1]["anneal"]
            assert following["stage"] < len(stages) - 1 or following["softened"]
        if event == "converged":
            assert following["stage"] == before["stage"] + 1


@given(st.lists(events, max_size=60), ladders, starts)
def test_the_way_out_of_an_anneal_is_the_prescribed_label(happened, ladder, start):
    """From wherever the failures have led: whoever converges often enough has the prescribed degauss and conv_thr."""
    steps = [following for _, _, following in histories(happened, ladder, start)]
    parameters = steps[-1] if steps else {**start, "level": 0}
    while following := converge(parameters, ladder):
        parameters = following
    assert parameters["conv_thr"] == CONFIGURED["conv_thr"]
    assert parameters["degauss"] == start["degauss"] or parameters["softened"]


@given(st.lists(events, max_size=60), ladders, starts)
def test_no_input_is_run_twice_unless_the_machine_is_to_blame(happened, ladder, start):
    """The same QE keywords on the same layout, from the same density."""
    seen = [_asked({**start, "level": 0})]
    for before, event, following in histories(happened, ladder, start):
        begins_again = following.get("softening") and not before.get("softening")
        if event in MISHAPS or event in (Failure.DIAGONALIZATION, Failure.NAN) or begins_again:
            seen = []  # an anneal may have begun again
        assert _asked(following) not in seen
        seen.append(_asked(following))


@given(st.lists(st.sampled_from([Failure.DIAGONALIZATION, Failure.NAN]), max_size=9), ladders)
def test_no_solver_fails_twice_with_the_same_subspace(happened, ladder):
    seen = []
    for before, _, _ in histories([(failure, {}) for failure in happened], ladder):
        david = before["diagonalization"] == "david"
        seen.append((before["diagonalization"], before.get("diago_david_ndim", 2) if david else None))
    assert len(seen) == len(set(seen))


def _asked(parameters: dict) -> dict:
    names = {*NAMELIST_OF, "parallel_cores", "npool", "continued", "softened", "stage"}
    return {name: value for name, value in parameters.items() if name in names}


@given(
    current=st.fixed_dictionaries(
        {},
        optional={
            "level": st.integers(-3, 9),
            "stage": st.integers(-3, 9),
            "gaining": st.booleans(),
            "diverged": st.booleans(),
            "continued": st.booleans(),
            "softened": st.booleans(),
            "softening": st.booleans(),
            "cooled": st.just(3),
            "climbed": st.lists(st.integers(1, 3), max_size=5),
            "tried": st.lists(st.sampled_from(SOLVERS), max_size=5),
            "diagonalization": st.sampled_from(SOLVERS),
            "startingpot": st.just("file"),
            "npool": st.integers(1, 4),
            "parallel_cores": st.integers(1, 64),
            "n_bands": st.integers(0, 100),
            "kept": st.dictionaries(st.sampled_from(["nosym", "npool"]), st.integers(1, 4), max_size=2),
        },
    ),
    failure=st.sampled_from(Failure),
    level=st.integers(0, 9),
)
def test_from_any_state_there_is_a_next_one_or_none_and_the_input_is_left_alone(current, failure, level):
    before = copy.deepcopy(current)

    steps = 0
    following = get_next_params(current, failure, level)
    assert current == before
    while following is not None and steps <= 60:
        steps += 1
        following = get_next_params(following, failure, following["level"])
    assert steps <= 60


@given(failure=st.sampled_from(Failure), gaining=st.booleans())
def test_the_same_state_has_the_same_answer(failure, gaining):
    parameters = {**CONFIGURED, "level": 0, "gaining": gaining}
    assert get_next_params(parameters, failure, 0) == get_next_params(copy.deepcopy(parameters), failure, 0)
