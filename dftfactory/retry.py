"""Failed calculations once more: with other numerical parameters, or with other resources, and for the same label."""

from __future__ import annotations

import difflib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dftfactory.claims import Claims, look_at
from dftfactory.cluster import ClusterConfig
from dftfactory.config import DFTConfig
from dftfactory.errors import ConfigError, DFTFactoryError
from dftfactory.id_pages import id_pages
from dftfactory.launches import FireworkState, find_reasons, set_to_run
from dftfactory.monitor.failed import Failed
from dftfactory.pw_entries import label_entries
from dftfactory.resources import spec_entries
from dftfactory.retry_resources import Wish, changed_resources, first_resources
from dftfactory.specification import Specification
from dftfactory.store import launchpad_errors

if TYPE_CHECKING:
    from fireworks import LaunchPad

# These can be run again; the others say why not.
_RUN_AGAIN = ("FIZZLED", "DEFUSED")
_REFUSED = {
    "RUNNING": "it runs; `dftfactory reconcile` finds out whether its rocket is gone",
    "RESERVED": "it waits in the queue; cancel its job first, then `dftfactory reconcile`",
    "WAITING": "it waits",
    "PAUSED": "it was paused by hand; `lpad resume_fws -i {fw_id}` lets it go on",
    "COMPLETED": "it has its label, or is linked to the one that has it; `submit --force` computes it again",
    "ARCHIVED": "it is archived; `dftfactory submit` queues it again",
}


@dataclass(frozen=True)
class Retried:
    """One Firework that is READY again; what has changed is name → [before, after].

    `state` is the one that it had: one that was READY before only has what has changed. `failure` is why it was over.
    """

    fw_id: int
    calculation_id: str
    state: str
    failure: str | None
    parameters: dict[str, list[Any]]
    resources: dict[str, list[Any]]


@dataclass(frozen=True)
class Refused:
    """One Firework that is left as it is, and why."""

    fw_id: int
    calculation_id: str
    state: str
    reason: str


@dataclass
class RetrySummary:
    """What became of the Fireworks; `by_class` counts the retried ones that are of a class of jobs."""

    dry_run: bool
    retried: list[Retried] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    by_class: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "dry_run": self.dry_run,
            "retried": [vars(each) for each in self.retried],
            "refused": [vars(each) for each in self.refused],
            "by_class": dict(self.by_class),
        }


def parse_changes(words: Iterable[str]) -> dict[str, Any]:
    """Return name → value of `mixing_beta=0.2`, `pw.electrons.mixing_ndim=20`, ...; values are YAML, as in dft.yaml.

    Raises
    ------
    ConfigError
        It is no `KEY=VALUE`, or names a parameter that defines the label.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changes: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set takes KEY=VALUE, such as mixing_beta=0.2, got {word!r}")
        try:
            value = YAML(typ="safe", pure=True).load(io.StringIO(text))
        except (YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {word!r}: the value cannot be read; quote text as in dft.yaml") from error
        changes[name] = str(Path(value).expanduser().absolute()) if name == "pseudopotential_dir" else value
    _refuse_label_parameters(changes)
    return changes


def select_failed(failed: Iterable[Failed], reason: str | None) -> list[Failed]:
    """Return those that failed for a reason, or all.

    Raises
    ------
    ConfigError
        None did.
    """
    everything = list(failed)
    chosen = [each for each in everything if reason in (None, each.failure)]
    names = sorted({each.failure for each in everything})
    if reason is not None and not chosen:
        there_are = f"FIZZLED are {', '.join(names)}" if names else "nothing is FIZZLED"
        close = difflib.get_close_matches(reason.upper(), names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"nothing is FIZZLED for {reason!r}: {there_are}{hint}")
    return chosen


@launchpad_errors()
def retry(
    launchpad: LaunchPad,
    fw_ids: Sequence[int],
    changes: Mapping[str, Any] | None = None,
    wish: Wish | None = None,
    *,
    cluster: ClusterConfig | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> RetrySummary:
    """Set Fireworks READY again that are FIZZLED or DEFUSED; the label that they give is the same one.

    Everything is checked before the first one is changed. One that has run out of time goes on from its state, unless
    `changes` has changed its parameters: then it begins anew.

    Parameters
    ----------
    launchpad
        Where they are.
    fw_ids
        Which ones.
    changes
        Name → value of numerical parameters, from `parse_changes`.
    wish
        What their next jobs are to have.
    cluster
        The classes of jobs of today, where there is a cluster.yaml.
    dry_run
        Only say what would be done.
    progress
        Called with the number of Fireworks done.

    Raises
    ------
    ConfigError
        A parameter is unknown, out of its range, or defines the label; no class of jobs has what is wished for. Nothing
        was changed.
    """
    _refuse_label_parameters(changes or {})
    summary = RetrySummary(dry_run)
    plans = list(_plans(launchpad, fw_ids, changes or {}, wish or Wish(), cluster, summary))
    for plan in plans:
        if dry_run or set_to_run(launchpad, FireworkState(plan.told.fw_id, plan.told.state), plan.entries):
            summary.retried.append(plan.told)
            summary.by_class.update([] if plan.job_class is None else [plan.job_class])
        else:
            why = "it has left this state just now; look again"
            summary.refused.append(Refused(plan.told.fw_id, plan.told.calculation_id, plan.told.state, why))
        progress(1)
    return summary


class _Plan(NamedTuple):
    """What is told of a Firework, the new entries of its specification, and its class of jobs."""

    told: Retried
    entries: dict[str, Any]
    job_class: str | None


def _plans(
    launchpad: LaunchPad,
    fw_ids: Sequence[int],
    changes: Mapping[str, Any],
    wish: Wish,
    cluster: ClusterConfig | None,
    summary: RetrySummary,
) -> Iterator[_Plan]:
    """Decide for each Firework what is written into its specification; those that cannot run again are refused."""
    for page in id_pages(dict.fromkeys(fw_ids)):
        found = {each["fw_id"]: each for each in launchpad.fireworks.find({"fw_id": {"$in": page}}, {"_id": 0})}
        claims = Claims(launchpad).of_fireworks(found)
        over = [FireworkState(fw_id, each["state"]) for fw_id, each in found.items() if each["state"] in _RUN_AGAIN]
        reasons = find_reasons(launchpad, over)
        for fw_id in filter(found.__contains__, page):
            spec, state = found[fw_id]["spec"], found[fw_id]["state"]
            name, why = str(spec.get("calculation_id", "")), _why_not(fw_id, state, claims.get(fw_id))
            try:
                asked = Specification(spec)
            except DFTFactoryError as error:
                why = why or error.message
            if why is not None:
                summary.refused.append(Refused(fw_id, name, state, why))
                continue
            config = _changed_config(asked.config, changes)
            parameters = _differences(_flat(asked.config), _flat(config))
            # Those of all elements, and not of this structure alone.
            files = {"pseudopotentials": spec["config"].get("pseudopotentials", {})}
            entries: dict[str, Any] = {"config": {**config.to_dict(), **files}} if parameters else {}
            before, after = spec.get("resources") or {}, spec.get("resources") or {}
            if wish:
                before = before or first_resources(asked, cluster)
                after = changed_resources(before, wish, cluster)
                entries |= spec_entries(after)
            moved = {key: change for key, change in _differences(before, after).items() if key in _TOLD}
            failure = str(reasons[fw_id]["failure"]) if fw_id in reasons else None
            yield _Plan(Retried(fw_id, name, state, failure, parameters, moved), entries, after.get("class"))


# What a person wants to know of changed resources.
_TOLD = ("class", "nodes", "cores", "memory_mb", "walltime_seconds", "partition")


def _why_not(fw_id: int, state: str, claim: Mapping[str, Any] | None) -> str | None:
    if state not in (*_RUN_AGAIN, "READY"):
        return _REFUSED.get(state, "it is in a state of its own").format(fw_id=fw_id)
    if claim is None:
        return None
    life = look_at(claim)
    # FireWorks says FIZZLED of what it has heard nothing of for hours, as `lpad detect_lostruns --fizzle` does.
    return f"it is still computed: {life.evidence}" if life.alive else None


def _refuse_label_parameters(changes: Mapping[str, Any]) -> None:
    """Refuse what would give another label, whatever its value."""
    label = set(DFTConfig.model_validate({"ecutwfc": 1.0}).label_parameters()) - {"pw"} | {"pseudopotentials"}
    for name, value in changes.items():
        top, _, below = name.partition(".")
        namelist, _, keyword = below.partition(".")
        if top == "pw" and keyword.lower() in DFTConfig.model_fields and keyword.lower() not in label:
            raise ConfigError(f"--set {name}: dft.yaml has a name of its own for it, {keyword.lower()}=VALUE")
        entry = {namelist.lower(): {keyword.lower(): value}}
        if top in label or (top == "pw" and keyword and label_entries(entry)):
            raise ConfigError(
                f"{name} defines the label: with another value it is another label and not this one once more. Change "
                "it in dft.yaml and `dftfactory submit` the structures again"
            )


def _changed_config(config: DFTConfig, changes: Mapping[str, Any]) -> DFTConfig:
    """Return the configuration with the changes, checked as a dft.yaml is."""
    values = config.to_dict()
    for name, value in changes.items():
        top, *below = name.split(".", 2)
        if top != "pw":
            values[name] = value
        elif len(below) != 2:
            raise ConfigError(f"--set {name}: parameters of pw.x have a namelist, such as pw.electrons.mixing_ndim=20")
        else:
            pw = {key: dict(entries) for key, entries in values.get("pw", {}).items()}
            pw.setdefault(below[0].lower(), {})[below[1].lower()] = value
            values["pw"] = pw
    changed = DFTConfig(**values)
    if changed.label_parameters() != config.label_parameters():
        raise ConfigError(
            f"{', '.join(changes)} would give another label: change dft.yaml and `dftfactory submit` again"
        )
    return changed


def _flat(config: DFTConfig) -> dict[str, Any]:
    """Return the values by the names that `--set` takes."""
    values = config.to_dict()
    entries = values.pop("pw", {})
    return values | {f"pw.{namelist}.{key}": value for namelist, keys in entries.items() for key, value in keys.items()}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = [*before, *(name for name in after if name not in before)]
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}
