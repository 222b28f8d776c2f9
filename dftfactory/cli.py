"""`dftfactory ...`: words to calls, no logic."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from dftfactory import cli_monitor, cli_upkeep
from dftfactory.cli_options import (
    Campaign,
    Candidates,
    ConfigFile,
    Folder,
    LaunchPadFile,
    WorkerFile,
    again,
    database_of,
    number_of,
    open_launchpad,
    progress_bar,
    prompt,
    say,
)

# What a shell calls the end by Ctrl-C; Typer ends with it, without a word.
INTERRUPTED = 130

app = typer.Typer(
    help="Turn SELECTED structures into trustworthy Quantum ESPRESSO labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
launchpad_app = typer.Typer(help="The local LaunchPad: a MongoDB-wire server for one machine.", no_args_is_help=True)
app.add_typer(launchpad_app, name="launchpad")


def _print_version(asked: bool) -> None:
    if asked:
        from dftfactory import __version__

        typer.echo(f"dftfactory {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Turn SELECTED structures into trustworthy Quantum ESPRESSO labels."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; this folder where not given.")] = Path(),
    pseudopotentials: Annotated[str | None, typer.Option(help="Folder of your .UPF files.")] = None,
    cluster: Annotated[str | None, typer.Option(help="slurm or pbs: fill in fw_configs for it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of Slurm, queue of PBS.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays for the jobs.")] = None,
    cores: Annotated[str | None, typer.Option(help="Cores of a node.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a node, such as 64G.")] = None,
    walltime: Annotated[str | None, typer.Option(help='Longest time of a job, "24:00:00".')] = None,
    setup: Annotated[str | None, typer.Option(help="Lines of shell that a job needs: 'module load qe; ...'")] = None,
    scratch: Annotated[str | None, typer.Option(help="Fast folder of a node for wave functions.")] = None,
    mongodb: Annotated[str | None, typer.Option(help="A my_launchpad.yaml that is there already.")] = None,
    bigmem: Annotated[str | None, typer.Option(help="Partition with more memory.")] = None,
) -> None:
    """Write a commented dft.yaml and a copy of fw_configs/; with --cluster asks for what is not given."""
    from dftfactory.cluster_files import next_commands
    from dftfactory.cluster_setup import ask_for_setup
    from dftfactory.setup_files import refuse_to_overwrite, write_start_files

    refuse_to_overwrite(folder)
    words = {"partition": partition, "account": account, "cores": cores, "memory": memory, "walltime": walltime}
    words |= {"setup": setup, "scratch": scratch, "mongodb": mongodb, "bigmem": bigmem}
    filled_in = ask_for_setup(cluster, words, prompt if sys.stdin.isatty() and sys.stdout.isatty() else None)
    for path in write_start_files(folder, pseudopotentials, filled_in):
        typer.echo(f"wrote {path}")
    if filled_in is not None:
        typer.echo("\n".join(["next:", *next_commands(folder, filled_in)]))
        return
    config = (folder / "fw_configs" / "FW_config.yaml").absolute()
    typer.echo("next: fill in dft.yaml, then `dftfactory check`")
    typer.echo("lpad, rlaunch, qlaunch and dftfactory find fw_configs after:")
    typer.echo(f"export FW_CONFIG_FILE={shlex.quote(str(config))}")


@app.command()
def check(
    config: ConfigFile = Path("dft.yaml"),
    worker: WorkerFile = None,
    launchpad: LaunchPadFile = None,
    job: Annotated[bool, typer.Option("--job", help="Check a node too, from inside a short job of the queue.")] = False,
    wait: Annotated[float, typer.Option(help="How many seconds that job has to start.")] = 300,
) -> None:
    """Check pw.x, MPI, pseudopotentials, the LaunchPad and the queue; each line says what to do."""
    from dftfactory.job_checks import check_everything

    bad = False
    for item in check_everything(config, worker, launchpad, wait if job else None):
        bad = bad or item.ok is False
        word = {True: "ok     ", False: "PROBLEM", None: "not yet"}[item.ok]
        typer.echo(f"{word}  {item.name}: {item.says}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def run(
    structure: Annotated[Path, typer.Argument(help="A structure file that ASE reads; its last frame is taken.")],
    config: ConfigFile = Path("dft.yaml"),
    worker: WorkerFile = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Run folder; named after the file where not given.")
    ] = None,
    softened: Annotated[
        bool, typer.Option("--softened", help="Accept a label at more than the prescribed degauss.")
    ] = False,
) -> None:
    """Label one structure on this machine, without a database."""
    from dftfactory.display import print_result
    from dftfactory.events import shown_on_terminal
    from dftfactory.label_one import label_structure_file

    with shown_on_terminal():
        result, run_dir = label_structure_file(structure, config, worker, folder, softened=softened)
    print_result(result, run_dir)


@app.command()
def submit(
    candidates: Candidates,
    config: ConfigFile = Path("dft.yaml"),
    launchpad: LaunchPadFile = None,
    write: Annotated[Path | None, typer.Option(help="Write files for `lpad add` into this folder instead.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compute again what has a label; the old one is put aside.")
    ] = False,
    campaign: Annotated[
        str | None,
        typer.Option("--campaign", help="A name for the structures; those of another one are left SELECTED."),
    ] = None,
    job_class: Annotated[
        str | None,
        typer.Option("--class", help="Class of jobs in cluster.yaml; chosen for each structure where not given."),
    ] = None,
) -> None:
    """Queue the SELECTED structures; safe to repeat."""
    from dftfactory.candidates import count_to_submit, open_candidates
    from dftfactory.cluster import find_classes
    from dftfactory.cluster_files import commands_for_classes
    from dftfactory.config import DFTConfig, find_worker_file
    from dftfactory.errors import printable
    from dftfactory.launchpad import rocket_command
    from dftfactory.pipeline import submit as submit_candidates
    from dftfactory.pipeline import write_workflows
    from dftfactory.workflows import checked_campaign

    settings = DFTConfig.from_yaml(config)
    # Before anything is imported.
    if campaign is not None:
        checked_campaign(campaign, "this command")
    cluster = find_classes(job_class)
    queue = open_launchpad(launchpad) if write is None else None
    database = database_of(candidates, import_structures=True)
    db = open_candidates(database)
    total = count_to_submit(db, campaign)
    with progress_bar("submitting", total) as step:
        if write is not None:
            summary = write_workflows(
                db, settings, write, step, force=force, campaign=campaign, cluster=cluster, job_class=job_class
            )
        else:
            summary = submit_candidates(
                db, settings, queue, step, force=force, campaign=campaign, cluster=cluster, job_class=job_class
            )
    if not total:
        for_it = "" if campaign is None else f" for campaign {campaign}"
        typer.echo(f"no structure in {database} is SELECTED{for_it}; `dftfactory status {database}` counts the others")
    elif write is not None:
        typer.echo(f"{number_of(summary.added, 'workflow file')} in {write}; add them with `lpad add {write}/*.json`")
    else:
        # What `init` has written serves, also where FireWorks' settings do not lead to it.
        beside = Path("fw_configs", "my_fworker.yaml")
        rockets = rocket_command(launchpad, find_worker_file() or (beside if beside.is_file() else None))
        jobs = commands_for_classes(summary.by_class)
        next_step = "the jobs below" if jobs else f"`{rockets}`"
        typer.echo(f"{summary.added} queued; next: {next_step}, then `dftfactory sync {again(database, launchpad)}`")
        for name, command in jobs.items():
            typer.echo(f"{summary.by_class[name]} of class {name}: `{command}`")
        say(summary.rerun, "set to run again")
        say(summary.already_queued, "queued before, linked to the Firework that is there")
        say(summary.already_labelled, "has a label already", "have a label already")
    say(
        summary.refused,
        "refused: it cannot be right and is FAILED now",
        "refused: they cannot be right and are FAILED now",
    )
    for problem in summary.problems:
        typer.echo(f"  {printable(problem)}", err=True)
    say(summary.refused - len(summary.problems), "more, with the reason in the database")


@app.command()
def sync(
    candidates: Candidates,
    launchpad: LaunchPadFile = None,
    softened: Annotated[
        bool, typer.Option("--softened", help="Accept labels at more than the prescribed degauss.")
    ] = False,
    campaign: Campaign = None,
) -> None:
    """Bring labels and failures back to the candidates."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.candidates import count_by_status, open_candidates
    from dftfactory.pipeline import sync as sync_candidates

    db, opened = open_candidates(database_of(candidates)), open_launchpad(launchpad)
    numbers = count_by_status(db, campaign)
    if not any(numbers.values()):
        refuse_unknown_campaign(opened, campaign)
    with progress_bar("syncing", numbers["QUEUED"]) as step:
        summary = sync_candidates(db, opened, softened=softened, progress=step, campaign=campaign)
    typer.echo(f"{summary.completed} completed, {summary.failed} failed, {summary.waiting} queued or running")
    if summary.unknown:
        typer.echo(
            f"{number_of(summary.unknown, 'QUEUED structure')} {'is' if summary.unknown == 1 else 'are'} not in this "
            "LaunchPad: is it the right one? "
            "Files of `submit --write` are in it after `lpad add`",
            err=True,
        )


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="File to write, *.extxyz.")],
    launchpad: LaunchPadFile = None,
    softened: Annotated[
        bool, typer.Option("--softened", help="Also write labels at more than the prescribed degauss.")
    ] = False,
    config_hash: Annotated[str | None, typer.Option(help="Only the labels of one configuration.")] = None,
    campaign: Campaign = None,
) -> None:
    """Write the labels as a training set in extended XYZ."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.export import export_labels
    from dftfactory.store import LabelStore

    opened = open_launchpad(launchpad)
    refuse_unknown_campaign(opened, campaign)
    labels = LabelStore(opened).all(config_hash, campaign)
    summary = export_labels(labels, path, softened=softened)
    left_out = f", {summary.left_out_softened} softened left out" if summary.left_out_softened else ""
    typer.echo(f"{number_of(summary.written, 'label')} in {path} (configuration {summary.config_hash}){left_out}")


cli_monitor.add_commands(app)
cli_upkeep.add_commands(app)


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="Where to run it.")] = Path("dftfactory-demo")) -> None:
    """Run the whole road on eight small structures with real pw.x, in a few minutes."""
    from dftfactory.demo import run_demo

    run_demo(folder)


@launchpad_app.command()
def start(folder: Folder = Path("launchpad")) -> None:
    """Start the server in the background and write its my_launchpad.yaml."""
    from dftfactory.local_launchpad import start_local_launchpad

    local = start_local_launchpad(folder)
    word = "already runs" if local.already_running else "started"
    typer.echo(f"LaunchPad {word} on 127.0.0.1:{local.port} (pid {local.pid})")
    typer.echo(f"dftfactory, rlaunch and lpad take it with -l {local.launchpad_file}")


@launchpad_app.command(name="connect")
def connect_launchpad(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("my_launchpad.yaml"),
    name: Annotated[str | None, typer.Option(help="Database; that of the URI, else fireworks.")] = None,
) -> None:
    """Write my_launchpad.yaml for the MongoDB whose URI is in DFTFACTORY_LAUNCHPAD_URI."""
    from dftfactory.launchpad import write_launchpad_file

    typer.echo(write_launchpad_file(file, name))


@launchpad_app.command()
def stop(folder: Folder = Path("launchpad")) -> None:
    """Stop the server; what it holds stays."""
    from dftfactory.local_launchpad import stop_local_launchpad

    typer.echo("LaunchPad stopped" if stop_local_launchpad(folder) else f"no LaunchPad was running in {folder}")


@launchpad_app.command(name="status")
def launchpad_status(folder: Folder = Path("launchpad")) -> None:
    """Say whether the server runs."""
    from dftfactory.local_launchpad import local_launchpad_status

    state = local_launchpad_status(folder)
    if state.running:
        typer.echo(f"runs on 127.0.0.1:{state.port} (pid {state.pid}) since {state.started:%Y-%m-%d %H:%M} UTC")
    elif state.died:
        typer.echo(f"died (pid {state.pid}); start it again with `dftfactory launchpad start --dir {folder}`")
    else:
        typer.echo(f"does not run; start it with `dftfactory launchpad start --dir {folder}`")
    typer.echo(f"{state.size / 1e6:.1f} MB in {folder}")
    raise typer.Exit(0 if state.running else 1)


def main() -> None:
    """Entry point: an error is one readable line, with a traceback only after --debug."""
    from dftfactory.errors import DFTFactoryError, printable

    debug = "--debug" in sys.argv
    # Wherever --debug stands, it means the same.
    sys.argv = [sys.argv[0], *(["--debug"] if debug else []), *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        raise
    except DFTFactoryError as error:
        if debug:
            raise
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        said = printable(" ".join(str(error).split())[:300])
        typer.echo(f"error: {type(error).__name__}: {said} (with --debug: where)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
