from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from upf_texts import version_2

from dftfactory.errors import ParserError
from dftfactory.failures import END_OF_FILE, EXPLANATIONS, Failure, diagnose, examine
from dftfactory.history import start_history
from dftfactory.parsers import parse_text, read_exit_status, read_pw_output

RECORDED = Path(__file__).parent / "files" / "pw"
CASES = sorted(path.parent.name for path in RECORDED.glob("*/case.json"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a recorded run into a folder of the test."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(RECORDED / name, tmp_path / name))

    return copy


def killed_run(folder: Path, out: str = "", err: str = "", status: int = -9) -> Path:
    """Make a run that began, printed `out` and `err`, and was killed in its second iteration."""
    text = (RECORDED / "sigkill_mid_scf" / "pw.out").read_text()
    begin = text[: text.index("iteration #  2")]
    folder.mkdir(exist_ok=True)
    (folder / "pw.out").write_text(f"{begin}iteration #  2\n{out}\n")
    (folder / "pw.err").write_text(err)
    (folder / "exit_status").write_text(f"{status}\n")
    shutil.copy(RECORDED / "sigkill_mid_scf" / "pw.in", folder / "pw.in")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_end_has_one_of_its_accepted_names(name):
    folder = RECORDED / name
    accepted = set(json.loads((folder / "case.json").read_text())["accepted"])

    diagnosis = examine(folder)

    if diagnosis is None:
        try:
            outcome = "NONE" if read_pw_output(folder).energy < 0 else ""
        except ParserError:
            outcome = "REJECT"
        assert outcome in accepted
    elif "REJECT" in accepted:
        assert read_exit_status(folder) == 0
    else:
        assert diagnosis.failure.value in accepted
    assert diagnose(folder) == (diagnosis.failure if diagnosis else None)


@pytest.mark.parametrize("name", CASES)
def test_evidence_is_one_readable_line(name):
    diagnosis = examine(RECORDED / name)
    if diagnosis is None:
        return
    assert re.fullmatch(r"[^\n\t]{8,300}", diagnosis.evidence)
    assert diagnosis.evidence == " ".join(diagnosis.evidence.split())
    assert diagnosis.explanation == EXPLANATIONS[diagnosis.failure]


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("nml_unknown_key", 'Error in routine read_namelists (1): bad line in namelist &system: " foo_bar = 3"'),
        ("pseudo_html404", "Error in routine readpp (1): file ./psd/Si.pz-vbc.UPF not readable"),
        ("pseudo_trunc_half", "At line 761 of file xmltools.f90 Fortran runtime error: End of file"),
        ("overlap_si_0.0A", "atoms # 1 and # 2 overlap!"),
        ("oom_ulimit_v_200MB", "Error allocating 1259712 bytes"),
        ("exe_missing", "exit status 127: env:"),
        ("mpirun_exe_missing", "mpirun was unable to find the specified executable file"),
        ("pseudo_nan_local", "held NaN (LAPACK INFO 7), before any SCF: it can only come from Si.pz-vbc.UPF"),
        ("charge_drift_qe72", "the last density holds +5.4e-05 electrons too many"),
        ("restart_wfc_trunc", "right after reading the saved state: Fortran runtime error: Unformatted file structure"),
        ("npool_gt_ranks_serial", "invalid number of pools, out of range; on 1 rank"),
        ("mpi_idle_ranks", "some processors have no G-vectors for symmetrization; on 20 ranks"),
        ("oom_ulimit_v_200MB", "Cannot allocate memory; pw.x estimated 82.6 MB for each rank, on 1 rank"),
        ("sigkill_mid_scf", "exit status -9 (SIGKILL) in SCF iteration 3; pw.x estimated 28.6 MB for each rank"),
        ("sigterm_mid_scf", "exit status -15 (SIGTERM) in SCF iteration 3"),
        ("mpi_one_rank_segv", "exit status 139 (SIGSEGV)"),
        ("wallclock_timeout", "exit status 124 (time over)"),
        ("scf_maxstep_small", "convergence NOT achieved after 3 iterations: stopping; best accuracy 8.8e-05 Ry"),
        ("max_seconds", "Maximum CPU time exceeded after 2 SCF iterations"),
    ],
)
def test_evidence_quotes_what_was_said(name, evidence):
    assert evidence in examine(RECORDED / name).evidence


@pytest.mark.parametrize("failure", Failure)
def test_each_failure_tells_a_person_what_to_do(failure):
    what, _, to_do = EXPLANATIONS[failure].partition("; ")
    assert what
    assert to_do
    assert failure.value == failure.name


def test_the_recorded_runs_show_almost_every_failure():
    """Only a HANG leaves no trace of its own: it is seen while it lasts."""
    seen = {diagnose(RECORDED / name) for name in CASES}
    assert set(Failure) - seen == {Failure.HANG}


# What lies in the folder from before, or is missing


def test_a_crash_of_an_earlier_run_does_not_spoil_a_good_one(run):
    folder = run("ok_si2_mpi2")
    shutil.copy(RECORDED / "stale_crash_then_error" / "CRASH", folder / "CRASH")

    assert diagnose(folder) is None
    assert read_pw_output(folder).n_ranks == 2


def test_an_error_of_another_pool_stands_only_in_crash(run):
    folder = run("sigkill_mid_scf")
    (folder / "CRASH").write_text(
        " %%%%%%%%%%\n     task #         3\n     from cdiaghg : error #        41\n     problems computing cholesky\n"
    )
    assert examine(folder).failure is Failure.DIAGONALIZATION
    assert examine(folder).evidence == "problems computing cholesky"


def test_a_crash_that_is_older_than_the_run_is_not_its_error(run):
    """Times tell, where the folder has kept them; the run began on 22 November 2026."""
    folder = run("sigkill_mid_scf")
    shutil.copy(RECORDED / "stale_crash_then_error" / "CRASH", folder / "CRASH")
    assert diagnose(folder) is Failure.INPUT_ERROR

    began = parse_text((folder / "pw.out").read_text()).started.timestamp()
    os.utime(folder / "pw.out", (began + 5, began + 5))
    os.utime(folder / "CRASH", (began - 3600, began - 3600))
    assert diagnose(folder) is Failure.KILLED

    # An archive that has set all times to one.
    os.utime(folder / "pw.out", (0, 0))
    os.utime(folder / "CRASH", (0, 0))
    assert diagnose(folder) is Failure.INPUT_ERROR


@pytest.mark.parametrize("earlier", ["nml_unknown_key", "overlap_si_0.0A", "sigkill_mid_scf", "scf_maxstep_small"])
def test_of_several_runs_in_one_file_the_last_one_counts(run, earlier):
    """A job script that appends."""
    before = (RECORDED / earlier / "pw.out").read_text()
    for name, outcome in (("ok_si2_mpi2", None), ("sigterm_mid_scf", Failure.KILLED)):
        folder = run(name)
        out = (folder / "pw.out").read_text()
        (folder / "pw.out").write_text(before + out)
        assert diagnose(folder) is outcome


def test_the_xml_of_an_earlier_run_is_no_label(run):
    """A good run, then an input error in the same folder: its XML says converged."""
    folder = run("stale_xml_after_input_error")

    assert "<convergence_achieved>true" in (folder / "out" / "pwscf.xml").read_text()
    assert diagnose(folder) is Failure.INPUT_ERROR


def test_an_empty_folder_is_an_incomplete_output(tmp_path):
    assert diagnose(tmp_path) is Failure.INCOMPLETE_OUTPUT
    assert diagnose(tmp_path / "missing") is Failure.INCOMPLETE_OUTPUT


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        ("0", Failure.INCOMPLETE_OUTPUT),
        ("127", Failure.ENVIRONMENT),
        ("126", Failure.ENVIRONMENT),
        ("1", Failure.ENVIRONMENT),
        ("255", Failure.ENVIRONMENT),  # a launcher that could not reach a node; an EXIT file lets pw.x begin first
        ("-9", Failure.KILLED),
        ("137", Failure.KILLED),
    ],
)
def test_a_run_that_left_no_output_is_judged_by_its_exit_status(run, status, failure):
    folder = run("ok_fe_mag")
    (folder / "pw.out").unlink()
    (folder / "exit_status").write_text(status)

    assert diagnose(folder) is failure


def test_every_output_that_is_cut_has_a_failure(run):
    folder = run("ok_fe_mag")
    content = (folder / "pw.out").read_bytes()
    for end in range(0, content.index(b"JOB DONE."), 509):
        (folder / "pw.out").write_bytes(content[:end])
        (folder / "exit_status").write_text("0")
        assert diagnose(folder) is Failure.INCOMPLETE_OUTPUT
        (folder / "exit_status").write_text("-15")
        assert diagnose(folder) is Failure.KILLED


@pytest.mark.parametrize("bad", ["NaN", "*****************", "-Infinity"])
def test_a_number_that_is_none_in_the_scf_is_nan_even_when_pw_was_killed_later(run, bad):
    folder = run("sigkill_mid_scf")
    text = (folder / "pw.out").read_text()
    (folder / "pw.out").write_text(re.sub(r"(total energy +=) +-\d+\.\d+", rf"\1 {bad}", text))

    assert diagnose(folder) is Failure.NAN


def test_stars_in_an_early_iteration_are_not_yet_nan(run):
    folder = run("scf_maxstep_small")
    text = (folder / "pw.out").read_text()
    energies = [match.span(1) for match in re.finditer(r"scf accuracy +< +(\S+)", text)]
    first, last = energies[0], energies[-1]
    (folder / "pw.out").write_text(text[: first[0]] + "***************" + text[first[1] :])
    assert diagnose(folder) is Failure.SCF_NOT_CONVERGED

    (folder / "pw.out").write_text(text[: last[0]] + "NaN" + text[last[1] :])
    assert diagnose(folder) is Failure.NAN
    assert examine(folder).evidence == "NaN for an energy in SCF iteration 3"


def test_nan_in_a_whole_output(run):
    folder = run("ok_fe_mag")
    text = (folder / "pw.out").read_text()
    (folder / "pw.out").write_text(re.sub(r"(force =) +-?\d+\.\d+", r"\1            NaN", text, count=1))

    assert diagnose(folder) is Failure.NAN


def test_atoms_on_top_of_each_other_are_not_the_solver_s_fault(run):
    """Two Ni at 0.5 Å: pw.x says `S matrix not positive definite`; another solver would say the same."""
    folder = run("cholesky_unbuf_precon")
    assert "S matrix not positive definite" in (folder / "pw.out").read_text()
    assert examine(folder).failure is Failure.GEOMETRY

    text = (folder / "pw.in").read_text()
    (folder / "pw.in").write_text(re.sub(r"(Ni +\S+ +\S+) +\S+$(?=\s*\Z)", r"\1 4.0", text.rstrip()) + "\n")
    assert examine(folder).failure in (Failure.GEOMETRY, Failure.DIAGONALIZATION)


def test_how_close_is_too_close_is_the_configuration_s(run):
    """The recorded run is converged Si at 0.1 Å; with a limit of 0.01 nothing says that it is too close."""
    folder = run("overlap_si_0.1A")
    assert diagnose(folder) is Failure.GEOMETRY

    prescribed = {"degauss": 0.01, "conv_thr": 1e-8, "max_force": 1e9, "min_distance_fraction": 0.01}
    start_history(folder, "si", {}, prescribed, [])
    assert diagnose(folder) is None


def test_bands_that_were_too_few_are_reported_with_their_number():
    diagnosis = examine(RECORDED / "efermi_wrong")
    assert diagnosis.failure is Failure.OCCUPATIONS
    assert diagnosis.observed == {"n_bands": 2}


def test_an_scf_that_stands_still_when_its_time_is_over_does_not_get_more_time():
    """59 iterations at an accuracy of 1e-3 Ry, stopped by max_seconds; the other one was stopped after two."""
    assert examine(RECORDED / "osc_fe_slab5_L0").failure is Failure.SCF_NOT_CONVERGED
    assert examine(RECORDED / "max_seconds").failure is Failure.WALLTIME


# What the live watch has recorded before it stopped the run


@pytest.mark.parametrize(
    ("failure", "observed"),
    [
        # What it has left is judged by its own numbers: this one gained when it was stopped.
        (Failure.SCF_NOT_CONVERGED, {"gaining": True, "hopeless": False, "diverged": False}),
        (Failure.HANG, {}),
        (Failure.OUT_OF_MEMORY, {}),
    ],
)
def test_why_we_stopped_a_run_is_what_it_failed_of(run, failure, observed):
    """An EXIT file and SIGKILL say nothing of who sent them, and why."""
    folder = run("sigkill_mid_scf")
    stop(folder, {"failure": failure.value, "evidence": "no gain in 20 iterations"})

    diagnosis = examine(folder)

    assert (diagnosis.failure, diagnosis.evidence) == (failure, "no gain in 20 iterations")
    assert diagnosis.observed == observed


def test_a_run_that_became_a_label_before_it_was_stopped_is_a_label(run):
    folder = run("ok_fe_mag")
    stop(folder, {"failure": "HANG", "evidence": "no output for 60 s"})
    assert diagnose(folder) is None


@pytest.mark.parametrize("stopped", [None, {}, {"failure": "OTHER", "evidence": ""}, "HANG"])
def test_a_record_of_a_stop_that_is_none_is_passed_over(run, stopped):
    folder = run("sigkill_mid_scf")
    stop(folder, stopped)
    assert diagnose(folder) is Failure.KILLED


def test_a_damaged_history_does_not_hide_what_the_output_says(run):
    folder = run("sigkill_mid_scf")
    (folder / "history.json").write_text('{"attempts": [')
    assert diagnose(folder) is Failure.KILLED


def stop(folder: Path, stopped: object) -> None:
    """Give the run a history in which it was stopped."""
    text = (folder / "pw.in").read_text()
    degauss = re.search(r"degauss *= *(\S+)", text)
    conv_thr = float(re.search(r"conv_thr *= *(\S+)", text)[1].replace("d", "e"))
    prescribed = {"degauss": float(degauss[1]) if degauss else 0.0, "conv_thr": conv_thr, "max_force": 40.0}
    start_history(folder, "x", {}, {**prescribed, "min_distance_fraction": 0.5}, [])
    history = json.loads((folder / "history.json").read_text())
    history["attempts"][-1]["stopped"] = stopped
    (folder / "history.json").write_text(json.dumps(history))


# What lies behind a failure


def damaged_pseudopotential(folder: Path, text: str) -> None:
    (folder / "psd").mkdir()
    (folder / "psd" / "Si.pz-vbc.UPF").write_text(text)


@pytest.mark.parametrize("name", ["pseudo_nan_local", "pseudo_nan_rhoatom_qe72"])
def test_a_damaged_pseudopotential_that_is_still_there_is_named_with_its_line(run, name):
    folder = run(name)
    damaged_pseudopotential(folder, version_2().replace("</PP_MESH>", "NaN\n</PP_MESH>"))

    diagnosis = examine(folder)

    assert diagnosis.failure is Failure.PSEUDOPOTENTIAL
    assert re.search(r"Si.pz-vbc.UPF has 'nan' instead of a number in line \d+", diagnosis.evidence)
    assert "eigenvectors failed to converge" in diagnosis.evidence


def test_a_whole_pseudopotential_is_not_to_blame_for_the_solver(run):
    folder = run("pseudo_nan_local")
    damaged_pseudopotential(folder, version_2())
    assert diagnose(folder) is Failure.DIAGONALIZATION


def test_a_solver_that_fails_on_finite_numbers_is_no_matter_of_the_pseudopotential(run):
    """Eight wavefunctions: an INFO of 12 is an overlap matrix whose fourth minor is not positive."""
    folder = run("pseudo_nan_local")
    for name in ("pw.out", "pw.err"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("cdiaghg (7)", "cdiaghg (12)").replace("errorcode 7", "errorcode 12"))
    assert diagnose(folder) is Failure.DIAGONALIZATION


def test_nan_in_the_first_matrix_of_a_restart_is_the_saved_density_s(run):
    """The same INFO from scratch would be a pseudopotential's; a start from scratch tells the two apart."""
    folder = run("pseudo_nan_local")
    assert diagnose(folder) is Failure.PSEUDOPOTENTIAL
    text = (folder / "pw.in").read_text()
    (folder / "pw.in").write_text(text.replace("&ELECTRONS", "&ELECTRONS\n startingpot='file'"))
    assert diagnose(folder) is Failure.BAD_RESTART


@pytest.mark.parametrize("status", ["-15", "137", "-9"])
def test_a_restart_that_was_killed_from_outside_is_not_the_saved_state_s_fault(run, status):
    folder = run("restart_xml_trunc")
    assert diagnose(folder) is Failure.BAD_RESTART
    (folder / "exit_status").write_text(status)
    assert diagnose(folder) is Failure.KILLED


@pytest.mark.parametrize("name", ["charge_wrong_qe72", "syn_out_cut_forces", "pseudo_nan_nlcc_qe72"])
def test_a_disk_that_is_full_explains_what_it_has_damaged(run, monkeypatch, name):
    """With disk_io = high, pw.x 6.7 reads wavefunctions back from a full disk, and says that the charge is wrong."""
    folder = run(name)
    assert diagnose(folder) is not Failure.DISK_FULL
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))

    diagnosis = examine(folder)

    assert diagnosis.failure is Failure.DISK_FULL
    assert diagnosis.evidence.endswith(f"; 0 MB are free in {folder} now")


def test_a_full_disk_does_not_explain_an_input_error(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert diagnose(run("nml_unknown_key")) is Failure.INPUT_ERROR


def test_a_full_disk_is_named_with_its_folder_and_what_is_free(run, tmp_path):
    folder = run("diskfull_outdir_4k")
    assert re.search(r"charge-density; \d+ MB are free in /\S+ now$", examine(folder).evidence)


# Text that only looks like a failure


def test_a_killed_run_is_killed(tmp_path):
    assert diagnose(killed_run(tmp_path)) is Failure.KILLED


@pytest.mark.parametrize(
    "out",
    [
        "     Message from routine setup:\n     some processors have no work",
        "     Message from routine c_bands:\n     problems computing cholesky, going on",
        "     from read_file: starting density taken from ./out/upf/charge-density",
        "     PseudoPot. # 1 for Si read from file:\n     /data/upf/checkallsym/cannot/Si.upf",
        "     starting charge    7.99901, renormalised to    8.00000",
        "     c_bands:  2 eigenvalues not converged",
        "     Message from routine volume:\n     cannot allocate a nice grid",
    ],
)
def test_harmless_lines_of_the_output_are_no_failure(tmp_path, out):
    assert diagnose(killed_run(tmp_path, out=out)) is Failure.KILLED


@pytest.mark.parametrize(
    "err",
    [
        "libibverbs: Warning: couldn't stat '/sys/class/infiniband': No such file or directory",
        "[node1] UCX  WARN  failed to register address: Cannot allocate memory",
        "openib BTL: ibv_create_qp: failed: Cannot allocate memory, going on with TCP",
        "At line 12 of file buffers.f90 (unit = 4, file = '/data/upf/out/x.dat')\nFortran runtime error: End of file",
        "cat: /etc/slurm/oom: Permission denied",
        "mpirun: note from host: error counters were reset",
    ],
)
def test_harmless_lines_of_the_launcher_are_no_failure(tmp_path, err):
    assert diagnose(killed_run(tmp_path, err=err)) is Failure.KILLED


@pytest.mark.parametrize(
    ("err", "failure"),
    [
        ("Operating system error: Cannot allocate memory\nAllocation would exceed memory limit", "OUT_OF_MEMORY"),
        ("forrtl: severe (41): insufficient virtual memory", "OUT_OF_MEMORY"),
        ("mca_pml_ob1.so: failed to map (ignored)\nout of dynamic memory in opal_show_help_yylex()", "OUT_OF_MEMORY"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.", "OUT_OF_MEMORY"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", "OUT_OF_MEMORY"),
        ("srun: error: node1: task 0: Out Of Memory", "OUT_OF_MEMORY"),
        ("forrtl: No space left on device", "DISK_FULL"),
        ("forrtl: Disk quota exceeded", "DISK_FULL"),
    ],
)
def test_what_the_system_says_names_the_failure(tmp_path, err, failure):
    assert diagnose(killed_run(tmp_path, err=err)).value == failure


@pytest.mark.parametrize(
    ("routine", "said", "failure"),
    [
        ("cdiaghg", "problems computing cholesky", Failure.DIAGONALIZATION),
        ("  cdiaghg", "S matrix not positive definite", Failure.DIAGONALIZATION),
        ("rdiaghg", "eigenvectors failed to converge", Failure.DIAGONALIZATION),
        ("c_bands", "too many bands are not converged", Failure.DIAGONALIZATION),
        ("checkallsym", "some of the original symmetry operations not satisfied", Failure.SYMMETRY),
        ("davcio", "error writing file ./out/pwscf.wfc1", Failure.DISK_FULL),
        ("fft_type_set", "there are processors with no planes. Use pencil decomposition", Failure.PARALLELIZATION),
        ("n_plane_waves", "No plane waves found: running on too many processors?", Failure.PARALLELIZATION),
        ("efermig", "internal error, cannot bracket Ef", Failure.OCCUPATIONS),
        ("some_new_routine", "something that nobody has seen", Failure.INPUT_ERROR),
    ],
)
@pytest.mark.parametrize("version", ["6 and 7", "5 and CRASH"])
def test_what_pw_stops_for_names_the_failure(tmp_path, routine, said, failure, version):
    bar = " " + "%" * 78 + "\n"
    if version == "6 and 7":
        error = f"{bar}     Error in routine {routine} (1):\n     {said}\n{bar}\n     stopping ...\n"
    else:
        error = f"{bar}     task #         1\n     from {routine} : error #         1\n     {said}\n{bar}"
    folder = killed_run(tmp_path, out=error, status=1)

    diagnosis = examine(folder)

    assert diagnosis.failure is failure
    assert said in diagnosis.evidence


def test_a_functional_that_nobody_knows_is_the_pseudopotential_s_unless_the_input_names_it(run):
    folder = run("pseudo_unknown_functional")
    assert diagnose(folder) is Failure.PSEUDOPOTENTIAL
    text = (folder / "pw.in").read_text()
    (folder / "pw.in").write_text(text.replace("&SYSTEM", "&SYSTEM\n input_dft='FOO'"))
    assert diagnose(folder) is Failure.INPUT_ERROR


def test_intel_fortran_names_the_pseudopotential_that_it_could_not_read(run):
    folder = run("pseudo_trunc_half")
    (folder / "pw.err").write_text("forrtl: severe (24): end-of-file during read, unit 4, file /psd/Si.pz-vbc.UPF\n")

    assert diagnose(folder) is Failure.PSEUDOPOTENTIAL


def test_only_the_end_of_a_runaway_output_is_searched_for_messages(tmp_path):
    """100,000 empty lines took minutes when a pattern could run over them; ten times as many are nothing now."""
    error = "     Error in routine cdiaghg (1):\n     problems computing cholesky\n"
    assert diagnose(killed_run(tmp_path, out="\n" * 1_000_000 + error, status=1)) is Failure.DIAGONALIZATION
    assert diagnose(killed_run(tmp_path, out=error + "\n" * END_OF_FILE, status=-9)) is Failure.KILLED


# What is seen of an SCF that has not converged


def test_the_failure_tells_whether_the_scf_was_gaining(run):
    assert examine(RECORDED / "scf_maxstep_small").observed == {"gaining": True, "hopeless": False, "diverged": False}
    assert examine(RECORDED / "osc_fe_slab5_L0").observed == {"gaining": False, "hopeless": False, "diverged": False}
    assert examine(RECORDED / "maxstep_0").observed == {"gaining": False, "hopeless": False, "diverged": False}


def test_the_failure_tells_whether_the_scf_has_diverged(run):
    """40 valence electrons, the last four accuracies at 41 Ry or more; with one at 39 Ry it is on its way back."""
    folder = run("osc_fe_slab5_L0")
    assert "number of electrons       =        40.00" in (folder / "pw.out").read_text()
    for last, diverged in (("41.00000000", True), ("39.00000000", False)):
        text = (RECORDED / "osc_fe_slab5_L0" / "pw.out").read_text()
        matches = list(re.finditer(r"(?<=estimated scf accuracy    <) *\S+", text))[-4:]
        for match, accuracy in zip(reversed(matches), (last, *["41.00000000"] * 3), strict=True):
            text = f"{text[: match.start()]}      {accuracy}{text[match.end() :]}"
        (folder / "pw.out").write_text(text)
        assert examine(folder).observed == {"gaining": False, "hopeless": False, "diverged": diverged}


def test_without_a_number_of_electrons_nobody_can_say_that_an_scf_has_diverged(run):
    folder = run("osc_fe_slab5_L0")
    text = (folder / "pw.out").read_text()
    (folder / "pw.out").write_text(text.replace("number of electrons", "number of things"))
    assert examine(folder).observed == {"gaining": False, "hopeless": False, "diverged": False}


def test_launcher_that_was_told_to_end_before_pw_said_anything_was_killed(tmp_path):
    """It is not an installation that does not start, which would fail one structure after the other."""
    (tmp_path / "pw.out").write_text("")
    (tmp_path / "pw.err").write_text("mpirun: Forwarding signal 18 to job\n")
    (tmp_path / "exit_status").write_text("1\n")
    assert diagnose(tmp_path) is Failure.KILLED
    (tmp_path / "pw.err").write_text("mpirun was unable to find the specified executable file\n")
    assert diagnose(tmp_path) is Failure.ENVIRONMENT
