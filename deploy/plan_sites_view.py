"""The sites of a plan as an engineer compares them: name, short fingerprint, what for.

Engineers read these fingerprints to each other by telephone, so each sees the others'
and the own one, written alike. Twenty digits are 80 bits: enough that nobody finds a
second key with the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.desk_control import PlanView
from client.ledger import read_ledger, steps_of
from client.peers import known_peers
from client.policy import Policy
from client.site_file import SIGN_KEY, read_site_file
from common.accounting import cost_of
from common.certificates import grouped
from common.errors import JoinError
from common.keys import read_signing_key
from common.signing import fingerprint, public_from_text, public_text

_DIGITS = 20


@dataclass(frozen=True)
class Here:
    """What a site is, and knows, when its engineer looks at a plan."""

    name: str
    """Of the site."""
    key: str | None
    """Its verifying key, as `signing.public_text`; unset if it has none yet."""
    policy: Policy
    """The hospital's."""
    peers: Mapping[str, str]
    """Site to the key that it is known by."""
    paid: float = 0.0
    """Epsilon that each patient has paid, if the policy has a budget."""


def look_here(folder: Path) -> Here:
    """What the site of this folder is, and knows."""
    settings = read_site_file(folder)
    try:
        key = public_text(read_signing_key(folder / SIGN_KEY).public_key())
    except JoinError:
        key = None
    paid = 0.0
    if settings.policy.dp_epsilon is not None and key is not None:
        steps = map(steps_of, read_ledger(folder))
        paid = cost_of(steps, settings.policy.dp_delta).epsilon
    return Here(settings.name, key, settings.policy, known_peers(folder), paid)


def describe_sites(view: PlanView, here: Here) -> dict[str, object]:
    """Who takes part in a plan, and who would if it were approved anew."""
    known = {**here.peers, here.name: here.key or here.peers.get(here.name, "")}
    gone = [name for name in view.sites if view.changed and name not in view.changed]
    return {
        "sites": [_row(n, k, known, here.name) for n, k in sorted(view.sites.items())],
        "sites_confirmed": view.are_confirmed,
        "sites_changed": [
            _row(name, key, known, here.name)
            for name, key in sorted(view.changed.items())
        ],
        "sites_gone": sorted(gone),
    }


def print_sites(plan: Mapping[str, Any]) -> None:
    """Print who takes part, as `describe_sites` gives it; nothing without masks."""
    if plan["sites"]:
        print(f"  sites    {len(plan['sites'])}, {_standing(plan)}")
        _print_rows(plan["sites"])
    if plan["sites_changed"]:
        print(
            "  CHANGED  the hub now names other sites, and is refused; compare these "
            "keys by\n           telephone: approving the plan again confirms them"
        )
        _print_rows(plan["sites_changed"])
        for name in plan["sites_gone"]:
            print(f"    {name}: no longer there")


def _standing(plan: Mapping[str, Any]) -> str:
    if plan["sites_confirmed"]:
        return "confirmed here; others are refused"
    if plan["state"] == "approved":
        return "trusted on first use, as the policy approved it; approve to confirm"
    return "as the hub names them; compare by telephone, approving confirms them"


def _print_rows(rows: list[dict[str, str]]) -> None:
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"    {row['name']:<{width}}  {row['fingerprint']}  {row['known']}")


def _row(name: str, key: str, known: Mapping[str, str], own: str) -> dict[str, str]:
    """One site, and how this one knows it."""
    said = "new here"
    if name in known:
        said = "known here" if known[name] == key else "ANOTHER KEY than it is known by"
    if name == own:
        said = "this site" if known.get(name) == key else "NOT THIS SITE'S KEY"
    return {"name": name, "fingerprint": short_fingerprint(key), "known": said}


def short_fingerprint(key: str) -> str:
    """What engineers read out: the first twenty digits of a key's SHA-256."""
    return grouped(fingerprint(public_from_text(key))[:_DIGITS])
