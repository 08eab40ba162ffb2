"""The sites of a plan with masks: as a hub announced them, and as a person confirmed.

Masks protect a site from the hub only if the other sites are real. A hub could make up
all of them, so it names them before it may ask for anything, and what it named stands
before the engineer who approves the plan. From then on the plan works among these sites
under these keys:

    announced, waiting   kept as first named; nobody can change what was looked at
    confirmed            other names, other keys, or too few for masks: refused
    taken on first use   policy approve = "auto" or "listed": more sites may come, but
                         none under another key, and never so few that masks fall away

What was refused is kept beside it, again as first named, until the engineer approves
the plan anew, which confirms it, or denies it, which drops it.

Not covered here: a confirmed site that sides with the hub.
"""

import re
from collections.abc import Mapping

from common.errors import PolicyError
from common.plan import Plan
from common.plan_privacy import AUTO_SITES, is_masked
from common.plan_section import NAME_PATTERN
from common.secagg.terms import MAX_MEMBERS

Sites = Mapping[str, str]
"""Site to verifying key, 64 hexadecimal digits (`signing.public_text`)."""
_KEY = re.compile(r"[0-9a-f]{64}")


def may_be_masked(plan: Plan) -> bool:
    """Whether updates leave under masks if there are enough sites."""
    return is_masked(plan.privacy, plan.federation, AUTO_SITES)


def check_named(plan: Plan, sites: Sites) -> None:
    """Refuse a hub that does not say who takes part where there may be masks.

    Args:
        plan: The plan that it asks for.
        sites: As it named them; anything at all.

    Raises:
        PolicyError: There are none, too many, or one of them is no site; `code` is
            "roster".
    """
    if not may_be_masked(plan):
        return
    sound = all(
        re.fullmatch(NAME_PATTERN, name) and _KEY.fullmatch(key)
        for name, key in sites.items()
    )
    if not sound or not 0 < len(sites) <= MAX_MEMBERS:
        raise PolicyError(
            f"site was asked for a plan with masks among {len(sites)} sites, expected "
            f"1 to {MAX_MEMBERS} by name and key; nothing was queued",
            code="roster",
        )


def differences(
    plan: Plan, known: Sites, named: Sites, *, is_confirmed: bool
) -> list[str]:
    """What an engineer would have to look at before these sites may take part.

    Args:
        plan: The plan, one that may be masked.
        known: Its sites as confirmed, or as first named.
        named: As a hub names them now; fewer than known is no difference, but where
            the plan would then do without masks.
        is_confirmed: Whether a person looked at those known.
    """
    said = []
    for name, key in sorted(named.items()):
        if name not in known and is_confirmed:
            said.append(f"{name} is new")
        elif known.get(name, key) != key:
            said.append(f"{name} has another key")
    counts = len(known), len(named)
    masked, still = (is_masked(plan.privacy, plan.federation, n) for n in counts)
    if masked and not still:
        said.append(f"{counts[1]} sites in place of {counts[0]} would be without masks")
    return said


def not_confirmed(said: list[str]) -> PolicyError:
    """The refusal of sites that differ."""
    return PolicyError(
        f"hub named other sites than this plan was approved with ({'; '.join(said)}), "
        "expected those; nothing was done. Look at them with `fedct client approve "
        "--all`, compare their keys by telephone, and approve the plan again if they "
        "are right",
        code="roster",
    )
