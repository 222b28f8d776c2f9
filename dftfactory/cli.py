"""`dftfactory ...`: words to calls, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fireworks import LaunchPad
    from rich.progress import Progress

app = typer.Typer(
    help="SELECTED structures in, trustworthy Quantum ESPRESSO labels out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
launchpad_app = typer.Typer(help="The local LaunchPad: a MongoDB-wire server for one machine.", no_args_is_help=True)
app.add_typer(launchpad_app, name="launchpad")

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="How the labels are computed.")]
LaunchPadFile = Annotated[Path | None, typer.Option("--launchpad", "-l", help="my_launchpad.yaml.")]
WorkerFile = Annotated[Path | None, typer.Option("--worker", "-w", help="my_fworker.yaml, or its `env` alone.")]
Candidates = Annotated[str, typer.Argument(help="ASE database, or a structure file that ASE reads.")]
Folder = Annotated[Path, typer.Option("--dir", help="Folder of the server.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """SELECTED structures in, trustworthy Quantum ESPRESSO labels out."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path(),
    pseudopotentials: Annotated[str | None, typer.Option(help="Folder of the .UPF files.")] = None,
) -> None:
    """Write a commented dft.yaml and a copy of fw_configs."""
    from dftfactory.setup_files import write_start_files

    for path in write_start_files(folder, pseudopotentials):
        typer.echo(f"wrote {path}")


@app.command()
def check(config: ConfigFile = Path("dft.yaml"), worker: WorkerFile = None, launchpad: LaunchPadFile = None) -> None:
    """Check pw.x, MPI, pseudopotentials and the LaunchPad; each line says what to do."""
    from dftfactory.checks import check_all

    bad = False
    for item in check_all(config, worker, launchpad):
        bad = bad or item.ok is False
        word = {True: "ok     ", False: "PROBLEM", None: "not yet"}[item.ok]
        typer.echo(f"{word}  {item.name}: {item.says}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def run(
    structure: Annotated[Path, typer.Argument(help="A structure file that ASE reads; its last frame is taken.")],
    config: ConfigFile = Path("dft.yaml"),
    worker: WorkerFile = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Run folder; named after the file otherwise.")] = None,
    softened: Annotated[bool, typer.Option(help="Accept a label at more than the prescribed degauss.")] = False,
) -> None:
    """Label one structure on this machine, without a database."""
    from dftfactory.display import print_result
    from dftfactory.label_one import label_structure_file

    result, run_dir = label_structure_file(structure, config, worker, folder, softened=softened)
    print_result(result, run_dir)


@app.command()
def submit(
    candidates: Candidates,
    config: ConfigFile = Path("dft.yaml"),
    launchpad: LaunchPadFile = None,
    write: Annotated[Path | None, typer.Option(help="Write files for `lpad add` into this folder instead.")] = None,
) -> None:
    """Queue the SELECTED structures; safe to repeat."""
    from dftfactory.candidates import count_by_status, open_candidates
    from dftfactory.config import DFTConfig
    from dftfactory.pipeline import submit as submit_candidates
    from dftfactory.pipeline import write_workflows

    settings = DFTConfig.from_yaml(config)
    db = open_candidates(_imported(candidates))
    total = count_by_status(db)["SELECTED"]
    if write is not None:
        with _progress("writing", total) as step:
            summary = write_workflows(db, settings, write, step)
        typer.echo(f"{summary.added} workflow files in {write}; add them with: lpad add {write}/*.json")
    else:
        with _progress("submitting", total) as step:
            summary = submit_candidates(db, settings, _launchpad(launchpad), step)
        typer.echo(
            f"{summary.added} queued, {summary.rerun} to run again, {summary.already_queued} were queued, "
            f"{summary.already_labelled} have a label already, {summary.refused} refused"
        )
    for problem in summary.problems[:20]:
        typer.echo(f"refused {problem}", err=True)
    if len(summary.problems) > 20:
        typer.echo(f"... and {len(summary.problems) - 20} more; the reasons stand in the database", err=True)


@app.command()
def sync(
    candidates: Candidates,
    launchpad: LaunchPadFile = None,
    softened: Annotated[bool, typer.Option(help="Accept labels at more than the prescribed degauss.")] = False,
) -> None:
    """Bring labels and failures back to the candidates."""
    from dftfactory.candidates import count_by_status, open_candidates
    from dftfactory.pipeline import sync as sync_candidates

    db = open_candidates(candidates)
    with _progress("syncing", count_by_status(db)["QUEUED"]) as step:
        summary = sync_candidates(db, _launchpad(launchpad), softened=softened, progress=step)
    typer.echo(f"{summary.completed} completed, {summary.failed} failed, {summary.waiting} still queued or running")
    if summary.unknown:
        typer.echo(
            f"{summary.unknown} are QUEUED and this LaunchPad does not know them: is it the right one? "
            "(files of `submit --write` are known after `lpad add`)",
            err=True,
        )


@app.command()
def status(launchpad: LaunchPadFile = None) -> None:
    """Count Fireworks by status, labels by level, failures by reason."""
    from dftfactory.display import print_status

    print_status(_launchpad(launchpad))


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="*.extxyz")],
    launchpad: LaunchPadFile = None,
    softened: Annotated[bool, typer.Option(help="Also labels at more than the prescribed degauss.")] = False,
    config_hash: Annotated[str | None, typer.Option(help="Only the labels of one configuration.")] = None,
) -> None:
    """Write the labels as a training set in extended XYZ."""
    from dftfactory.export import export_labels
    from dftfactory.store import LabelStore

    summary = export_labels(LabelStore(_launchpad(launchpad)).all(config_hash), path, softened=softened)
    left_out = f", {summary.left_out_softened} softened left out" if summary.left_out_softened else ""
    typer.echo(f"{summary.written} labels in {path} (configuration {summary.config_hash}){left_out}")


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="Where to run it.")] = Path("dftfactory-demo")) -> None:
    """Run the whole road on eight small structures with real pw.x, in a few minutes."""
    from dftfactory.demo import run_demo

    run_demo(folder)


@launchpad_app.command()
def start(folder: Folder = Path("launchpad")) -> None:
    """Start the server in the background and write its my_launchpad.yaml."""
    from dftfactory.launchpad import start_local_launchpad

    local = start_local_launchpad(folder)
    word = "already runs" if local.already_running else "started"
    typer.echo(f"LaunchPad {word} on 127.0.0.1:{local.port} (pid {local.pid}); use it with -l {local.launchpad_file}")


@launchpad_app.command()
def stop(folder: Folder = Path("launchpad")) -> None:
    """Stop the server; what it holds stays."""
    from dftfactory.launchpad import stop_local_launchpad

    typer.echo("LaunchPad stopped" if stop_local_launchpad(folder) else f"no LaunchPad was running in {folder}")


@launchpad_app.command(name="status")
def launchpad_status(folder: Folder = Path("launchpad")) -> None:
    """Say whether the server runs."""
    from dftfactory.launchpad import local_launchpad_status

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
    from dftfactory.errors import DFTFactoryError

    debug = "--debug" in sys.argv
    # Wherever --debug stands, it means the same.
    sys.argv = [sys.argv[0], *(["--debug"] if debug else []), *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        app()
    except DFTFactoryError as error:
        if debug:
            raise
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        said = " ".join(str(error).split())[:300]
        typer.echo(f"error: {type(error).__name__}: {said} (with --debug: where)", err=True)
        sys.exit(1)


def _launchpad(file: Path | None) -> LaunchPad:
    from dftfactory.launchpad import load_launchpad

    return load_launchpad(file)


def _imported(candidates: str) -> str:
    """Return the candidate database; a structure file is imported into one beside it first."""
    from dftfactory.candidates import candidate_database_for, import_structures

    path = Path(candidates)
    if "://" in candidates or path.suffix in (".db", ".json", ".aselmdb") or not path.is_file():
        return candidates
    database = candidate_database_for(path)
    new, known = import_structures(path, database)
    typer.echo(f"{new} structures imported into {database} as SELECTED ({known} were there); sync with {database}")
    return str(database)


class _progress:  # noqa: N801  (used like a function)
    """A progress bar on a terminal, silence elsewhere; gives the function that moves it."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.bar: Progress | None = None

    def __enter__(self) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.bar = Progress(console=console, disable=not console.is_terminal)
        self.bar.start()
        task = self.bar.add_task(self.what, total=self.total)
        bar = self.bar
        return lambda n: bar.advance(task, n)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()


if __name__ == "__main__":
    main()
