"""`dftfactory recover`, `reconcile`, `archive`: keep the LaunchPad true, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dftfactory.cli_options import LaunchPadFile, number_of, open_launchpad, say


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `dftfactory`."""
    for command in (recover, reconcile, archive):
        app.command()(command)


def recover(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Where rockets ran; the folders that the LaunchPad knows where not given."),
    ] = None,
    launchpad: LaunchPadFile = None,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Only this campaign's folders that the LaunchPad knows.")
    ] = None,
) -> None:
    """Store labels that are on the disk only, and complete their Fireworks."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.errors import printable
    from dftfactory.lost_labels import recover_labels

    opened = open_launchpad(launchpad)
    refuse_unknown_campaign(opened, campaign)
    summary = recover_labels(opened, folders, campaign)
    typer.echo(
        f"{number_of(summary.found, 'label')} on the disk, {summary.stored} of them stored now; "
        f"{number_of(summary.completed, 'Firework')} set COMPLETED"
    )
    say(summary.ready, "READY again, for another job")
    for problem in summary.problems:
        typer.echo(f"  {printable(problem)}", err=True)
    raise typer.Exit(int(bool(summary.problems)))


def reconcile(
    launchpad: LaunchPadFile = None,
    gone: Annotated[
        list[str] | None, typer.Option("--gone", help="A machine that is gone: what ran there is lost.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    loop: Annotated[float | None, typer.Option(help="Do it again and again, with so many seconds between.")] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="Only the runs of this campaign.")] = None,
) -> None:
    """Find runs whose rocket or job is no more, end what they left, and set their Fireworks right."""
    import time

    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.display import print_findings
    from dftfactory.errors import LaunchPadError
    from dftfactory.lost_runs import Fate
    from dftfactory.lost_runs import reconcile as reconcile_runs

    opened = open_launchpad(launchpad)
    if loop is None:  # a name that is looked for again and again may come later
        refuse_unknown_campaign(opened, campaign)
    while True:
        try:
            findings, repaired = reconcile_runs(opened, gone=gone or (), dry_run=dry_run, campaign=campaign)
        except LaunchPadError as error:
            if loop is None:
                raise
            typer.echo(f"error: {error.message}", err=True)
        else:
            print_findings(findings, repaired)
            if loop is None:
                raise typer.Exit(int(any(finding.fate is Fate.BLOCKED for finding in findings)))
        time.sleep(loop or 0)


def archive(
    campaign: Annotated[str, typer.Argument(help="A campaign that is over.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="File, *.jsonl.gz; CAMPAIGN.jsonl.gz where not given.")
    ] = None,
    launchpad: LaunchPadFile = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Archive also what has no label; sync candidates before.")
    ] = False,
) -> None:
    """Move the Fireworks of a finished campaign into a file; their labels stay."""
    from dftfactory.archive import archive as archive_campaign

    summary = archive_campaign(open_launchpad(launchpad), campaign, to, failed=failed)
    say(summary.finished, "more taken out of the LaunchPad, written to a file before")
    typer.echo(f"{number_of(summary.archived, 'Firework')} archived" + (f" in {summary.file}" if summary.file else ""))
    say(summary.shared, "of another campaign, too: in the file, and in the LaunchPad for that one")
    for why, number in summary.stay.items():
        typer.echo(f"{number_of(number, 'Firework')} left: {why}")
