"""`dftfactory status`, `show`, `failures`, `retry`: look at what the factory does, and put back what has failed.

Words to calls, no logic. With `--json` there is one JSON document on stdout and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dftfactory.cli_options import CANDIDATES_HELP, Campaign, LaunchPadFile, database_of, open_launchpad, progress_bar

if TYPE_CHECKING:
    from dftfactory.monitor.progress import Progress

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
SECONDS = 2.0


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `dftfactory`."""
    app.command(cls=_WithWatch)(status)
    app.command()(show)
    app.command()(failures)
    app.command()(retry)
    app.command()(webgui)
    app.command()(report)


class _WithWatch(TyperCommand):
    """Takes `--watch` with or without the seconds behind it, which Typer has no option for.

    Its context is of click, or of Typer's own copy of it, from one version to the next.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the number behind `--watch` an option of its own."""
        words: list[str] = []
        for word in args:
            option, equals, value = word.partition("=")
            if option == "--watch" and equals:
                words += ["--watch", "--every", value]
            elif words and words[-1] == "--watch" and _is_number(word):
                words += ["--every", word]
            else:
                words.append(word)
        return super().parse_args(ctx, words)


def status(
    candidates: Annotated[str | None, typer.Argument(help=CANDIDATES_HELP)] = None,
    launchpad: LaunchPadFile = None,
    campaign: Campaign = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, every 2 s; `--watch 10` for every 10 s.")
    ] = False,
    every: Annotated[float, typer.Option(hidden=True, min=0.1, max=86400)] = SECONDS,
    as_json: AsJson = False,
) -> None:
    """Say how far it is, how fast, what it costs, what fails and what runs now."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.launchpad import describe_launchpad
    from dftfactory.monitor.failed import explanation_of
    from dftfactory.monitor.progress import read_progress
    from dftfactory.monitor.sections import Section, print_sections
    from dftfactory.monitor.status_display import status_line, status_sections

    if watch and as_json:
        raise typer.BadParameter("--json is one document: not with --watch")
    count = _counter(candidates, campaign)
    counts = count()
    opened = open_launchpad(launchpad)
    if candidates is None:  # they may be of a campaign that is not queued yet
        refuse_unknown_campaign(opened, campaign)
    where = describe_launchpad(launchpad)

    def sections(progress: Progress, most: int | None = None) -> list[Section]:
        explanations = {name: explanation_of(name) for name in progress.failures}
        limit = {} if most is None else {"most_running": most}
        told = status_sections(progress, candidates=counts, explanations=explanations, **limit)
        return [Section(f"LaunchPad at {where}"), *told]

    def look() -> Progress:
        nonlocal counts
        counts = count()
        return read_progress(opened, campaign)

    if watch:
        from dftfactory.monitor.watch_status import watch_status

        watch_status(look, sections, status_line, every)
        return
    progress = read_progress(opened, campaign)
    if as_json:
        _print_json({"launchpad": where, "campaign": campaign, "candidates": counts, **progress.to_dict()})
    else:
        print_sections(sections(progress))


def show(
    who: Annotated[str, typer.Argument(metavar="ID", help="A calculation_id, the id of a Firework, or a fingerprint.")],
    launchpad: LaunchPadFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell one structure's whole story: its runs, what was changed for each, its label or its failure."""
    from dftfactory.monitor.finding import find_fw_id
    from dftfactory.monitor.sections import print_sections
    from dftfactory.monitor.story import tell_story
    from dftfactory.monitor.story_display import story_sections

    opened = open_launchpad(launchpad)
    story = tell_story(opened, find_fw_id(opened, who))
    if as_json:
        _print_json(story.to_dict())
    else:
        print_sections(story_sections(story))


def failures(
    launchpad: LaunchPadFile = None,
    campaign: Campaign = None,
    as_json: AsJson = False,
) -> None:
    """Group what has failed by its reason; each with what to do, and a command where running it again helps."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.cluster import find_classes
    from dftfactory.monitor.failed import group_failures, read_failed
    from dftfactory.monitor.sections import print_sections
    from dftfactory.monitor.status_display import failure_sections

    options = _same_place(launchpad) + ([] if campaign is None else ["--campaign", campaign])
    opened = open_launchpad(launchpad)
    refuse_unknown_campaign(opened, campaign)
    groups = group_failures(read_failed(opened, campaign), options, find_classes())
    if as_json:
        _print_json({"campaign": campaign, "failures": [group.to_dict() for group in groups]})
    elif groups:
        print_sections(failure_sections(groups))
    else:
        typer.echo("nothing is FIZZLED" + ("" if campaign is None else f" in campaign {campaign}"))


def retry(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="As for `show`; or --reason or --campaign.")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="NAME", help="What failed for this, see `failures`.")] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="What failed of this campaign.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A numerical parameter of dft.yaml: mixing_beta=0.2, ..."),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="64G", help="Memory of a node, in MB without a letter.")] = None,
    walltime: Annotated[str | None, typer.Option(metavar="24:00:00", help="Time of the next job.")] = None,
    job_class: Annotated[str | None, typer.Option("--class", help="Class of jobs in cluster.yaml.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    launchpad: LaunchPadFile = None,
    as_json: AsJson = False,
) -> None:
    """Run failed calculations again, perhaps with other numerical parameters or a larger job; safe to repeat."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.cluster import find_classes
    from dftfactory.monitor.failed import read_failed
    from dftfactory.monitor.sections import print_sections
    from dftfactory.monitor.status_display import retry_sections
    from dftfactory.retry import parse_changes, select_failed
    from dftfactory.retry import retry as run_again
    from dftfactory.retry_resources import Wish

    if bool(ids) == (reason is not None or campaign is not None):
        raise typer.BadParameter("give IDs, or --reason, --campaign or both")
    changed, wish = parse_changes(changes or ()), Wish.from_words(memory, walltime, job_class)
    cluster = find_classes() if wish else None
    opened = open_launchpad(launchpad)
    if ids:
        from dftfactory.monitor.finding import find_fw_id

        fw_ids = [find_fw_id(opened, who) for who in ids]
    else:
        refuse_unknown_campaign(opened, campaign)
        fw_ids = [each.fw_id for each in select_failed(read_failed(opened, campaign), reason)]
    with progress_bar("retrying", len(fw_ids)) as step:
        summary = run_again(opened, fw_ids, changed, wish, cluster=cluster, dry_run=dry_run, progress=step)
    next_steps = _next_steps(launchpad, summary.by_class) if summary.retried and not dry_run else []
    if as_json:
        _print_json({**summary.to_dict(), "next": next_steps})
    else:
        print_sections(retry_sections(summary))
        for step_line in next_steps:
            typer.echo(step_line)
    raise typer.Exit(int(bool(summary.refused)))


def webgui(
    launchpad: LaunchPadFile = None,
    host: Annotated[str, typer.Option(help="Where to listen; by default for this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    user: Annotated[str, typer.Option(help="User name of the login, where there is a password.")] = "dftfactory",
    password_file: Annotated[
        Path | None,
        typer.Option(help="The password is its first line; DFTFACTORY_WEBGUI_PASSWORD where not given."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the pages in a browser.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for each request.")] = False,
) -> None:
    """Serve FireWorks' web GUI with pages of ours, to look at with a browser; nothing can be changed there."""
    from dftfactory.webgui.serve import serve

    serve(
        open_launchpad(launchpad),
        host=host,
        port=port,
        username=user,
        password_file=password_file,
        browser=browser,
        verbose=verbose,
    )


def _counter(candidates: str | None, campaign: str | None) -> Any:
    """Return the function that counts the candidates, or gives None."""
    if candidates is None:
        return lambda: None
    # ASE takes a second to load.
    from dftfactory.candidates import count_by_status, open_candidates

    db = open_candidates(database_of(candidates))
    return lambda: count_by_status(db, campaign)


def _next_steps(launchpad: Path | None, by_class: Any) -> list[str]:
    """Return what the user types next, as `submit` says it."""
    from dftfactory.cluster_files import commands_for_classes
    from dftfactory.config import find_worker_file
    from dftfactory.launchpad import rocket_command

    beside = Path("fw_configs", "my_fworker.yaml")
    rockets = rocket_command(launchpad, find_worker_file() or (beside if beside.is_file() else None))
    jobs = commands_for_classes(by_class)
    lines = [f"{by_class[name]} of class {name}: `{command}`" for name, command in jobs.items()]
    ending = " ".join(["dftfactory sync CANDIDATES", *_same_place(launchpad)])
    return [*(lines or [f"next: `{rockets}`"]), f"then: `{ending}`"]


def _same_place(launchpad: Path | None) -> list[str]:
    return [] if launchpad is None else ["-l", str(launchpad)]


def _print_json(document: Any) -> None:
    from dftfactory.plain_values import plain

    typer.echo(json.dumps(plain(document), indent=1))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def report(
    out: Annotated[Path, typer.Argument(help="File to write, *.html; an earlier report is replaced.")],
    campaign: Campaign = None,
    png: Annotated[bool, typer.Option("--png", help="Also write each picture as PNG, into OUT_png/.")] = False,
    launchpad: LaunchPadFile = None,
) -> None:
    """Write what the factory did and what the labels look like into one file for the browser."""
    from dftfactory.campaigns import refuse_unknown_campaign
    from dftfactory.cli_options import number_of
    from dftfactory.report.page import checked_path, write_report

    checked_path(out)  # before anything is read
    opened = open_launchpad(launchpad)
    refuse_unknown_campaign(opened, campaign)
    page, *pictures = write_report(opened, out, campaign, png=png)
    typer.echo(f"report in {out} ({page.stat().st_size / 1e6:.1f} MB), for any browser, without internet")
    if pictures:
        typer.echo(f"{number_of(len(pictures), 'picture')} in {out.with_name(pictures[0].parent.name)}")
    elif png:
        typer.echo("no pictures: there is nothing to draw yet")
