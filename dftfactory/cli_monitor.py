"""`dftfactory status`, ...: commands that look at what the factory is doing; words to calls, no logic."""

from __future__ import annotations

from typing import Annotated

import typer

from dftfactory.cli_options import CANDIDATES_HELP, Campaign, LaunchPadFile, database_of, open_launchpad


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `dftfactory`."""
    app.command()(status)


def status(
    candidates: Annotated[str | None, typer.Argument(help=CANDIDATES_HELP)] = None,
    launchpad: LaunchPadFile = None,
    campaign: Campaign = None,
) -> None:
    """Count candidates and Fireworks by state, labels by level, failures by kind."""
    from dftfactory.display import print_status
    from dftfactory.launchpad import describe_launchpad

    counts = None
    if candidates is not None:
        # ASE takes a second to load.
        from dftfactory.candidates import count_by_status, open_candidates

        counts = count_by_status(open_candidates(database_of(candidates)), campaign)
    opened = open_launchpad(launchpad)
    typer.echo(f"LaunchPad at {describe_launchpad(launchpad)}")
    print_status(opened, counts, campaign)
