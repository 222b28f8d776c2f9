from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftfactory.config import DFTConfig
from dftfactory.failures import Failure
from dftfactory.inputs import prescribed_parameters
from dftfactory.recovery import (
    LADDER,
    SOLVERS,
    STRATEGIES,
    get_next_params,
    get_next_stage,
    get_recovery_strategy,
)

# What a calculation of four atoms begins with.
CONFIGURED = {
    **prescribed_parameters(DFTConfig(ecutwfc=30, conv_thr_per_atom=2.5e-10), 4),
    "parallel_cores": 8,
    "npool": 4,
}
HOPELESS = (
    Failure.ENVIRONMENT,
    Failure.INPUT_ERROR,
    Failure.PSEUDOPOTENTIAL,
    Failure.GEOMETRY,
    Failure.SOFT_STOP,
)
SCF = Failure.SCF_NOT_CONVERGED


def fail(parameters: dict, failure: Failure, ladder=LADDER, **observed) -> dict | None:
    """Return what follows when a run with these parameters fails."""
    return get_next_params(
        {**parameters, **observed}, failure, parameters.get("level", 0), configured=CONFIGURED, ladder=ladder
    )


def converge(parameters: dict, ladder=LADDER) -> dict | None:
    """Return what follows when a run with these parameters converges."""
    return get_next_stage(parameters, configured=CONFIGURED, ladder=ladder)


def shown(parameters: dict, *names: str) -> dict:
    return {name: parameters.get(name) for name in names}


@pytest.fixture
def level_0() -> dict:
    return {**CONFIGURED, "level": 0}


# The climb


def test_after_an_scf_failure_at_beta_0_7_the_next_attempt_has_0_3():
    following = get_next_params({"mixing_beta": 0.7, "degauss": 0.02}, Failure.SCF_NOT_CONVERGED, 0)

    assert following["mixing_beta"] == 0.3
    assert following["level"] == 1


def test_the_whole_climb(level_0):
    """Each value of the ladder's table, to the end: nothing that the table does not name may move."""
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


# Going on from the saved density


def test_an_scf_that_still_gained_is_continued_once_at_its_level(level_0):
    continued = fail(level_0, SCF, gaining=True)
    assert shown(continued, "level", "startingpot", "mixing_beta") == {
        "level": 0,
        "startingpot": "file",
        "mixing_beta": 0.7,
    }

    climbed = fail(continued, SCF, gaining=True)
    assert shown(climbed, "level", "startingpot") == {"level": 1, "startingpot": None}

    assert fail(climbed, SCF, gaining=True)["level"] == 1  # each level has its own


def test_an_scf_that_stood_still_climbs(level_0):
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
    following = fail(level_0, SCF, gaining=True, n_bands=12)
    assert "gaining" not in following
    assert "n_bands" not in following


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


def test_a_rung_that_would_change_nothing_is_skipped(level_0):
    following = fail({**level_0, "npool": 1}, Failure.OUT_OF_MEMORY)
    assert following["diago_david_ndim"] == 2


def test_a_layout_that_does_not_fit_shrinks_to_one_rank(level_0):
    parameters, layouts = level_0, []
    while parameters := fail(parameters, Failure.PARALLELIZATION):
        layouts.append((parameters["parallel_cores"], parameters["npool"]))

    assert layouts == [(8, 1), (4, 1), (2, 1), (1, 1)]


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
    solvers = ["david", "cg"]
    while following := fail(following, Failure.DIAGONALIZATION):
        solvers.append(following["diagonalization"])
        assert following["level"] == 2
    assert solvers == list(SOLVERS)


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


@pytest.mark.parametrize(
    "failure", [Failure.KILLED, Failure.DISK_FULL, Failure.HANG, Failure.INCOMPLETE_OUTPUT, Failure.SYMMETRY]
)
def test_a_mishap_of_the_machine_is_repeated_once(level_0, failure):
    again = fail(level_0, failure)
    assert shown(again, *CONFIGURED) == shown(level_0, *CONFIGURED)
    assert fail(again, failure) is None


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

events = st.one_of(
    st.tuples(st.just("converged"), st.just(False)),
    st.tuples(st.sampled_from(Failure), st.booleans()),
)


@given(st.lists(events, max_size=200))
def test_every_recovery_ends_and_never_forgets_the_prescribed_parameters(happened):
    """Whatever happens to the runs, and however often, recovery ends; a hot run never passes for a label."""
    parameters, steps = {**CONFIGURED, "level": 0}, 0
    for event, gaining in happened * 3:
        before = copy.deepcopy(parameters)
        if event == "converged":
            following = converge(parameters)
        else:
            following = fail(parameters, event, gaining=gaining, n_bands=10)
        assert parameters == before
        if following is None:
            break
        steps += 1
        parameters = json.loads(json.dumps(following))
        assert parameters == following  # it lives in history.json
        assert 0 <= parameters["level"] <= len(LADDER)
        assert parameters["level"] >= before["level"]
        hot = parameters["degauss"] != CONFIGURED["degauss"] or parameters["conv_thr"] != CONFIGURED["conv_thr"]
        assert not hot or "stage" in parameters
        assert parameters["degauss"] >= CONFIGURED["degauss"]
    assert steps <= 60


@given(
    current=st.fixed_dictionaries(
        {},
        optional={
            "level": st.integers(-3, 9),
            "stage": st.integers(-3, 9),
            "gaining": st.booleans(),
            "continued": st.booleans(),
            "softened": st.booleans(),
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
