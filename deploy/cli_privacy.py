"""`fedct privacy`: what is known of a model's privacy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:
    from server.privacy_record import (
        InversionRecord,
        MembershipRecord,
        PrivacyRecord,
    )

privacy_app = typer.Typer(
    no_args_is_help=True,
    help="What is known of a model's privacy.\n\nExample: `fedct privacy audit runs/a`",
)


@privacy_app.callback()
def _verbs() -> None:
    """Keep `audit` a verb of its own."""


@privacy_app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Audit a finished run; write `privacy.json` beside its model, and print it.

    What was on, what DP has cost, what canaries show of the DP step, how much of a
    phantom's picture comes back from what the hub got, and (in a rehearsal, where the
    cases are) how well training cases can be told from others.

    Example: `fedct privacy audit runs/demo --format json`
    """
    from deploy.privacy_audit import audit_run
    from deploy.progress import show_progress

    with show_progress():
        record = audit_run(run, device)
    if output_format is Format.JSON:
        typer.echo(record.model_dump_json(indent=1))
    else:
        typer.echo("\n".join(lines_of(record)))


def lines_of(record: "PrivacyRecord") -> list[str]:
    """The record for people."""
    masks = f"{record.masked_rounds} of {record.rounds} rounds that counted"
    lines = [f"secure aggregation    {masks}", f"aggregation           {_rule(record)}"]
    if record.dp is None:
        lines.append("patient-level DP      off: no bound on what the model tells")
    else:
        epsilon = record.dp.epsilon
        said = "not told by every site" if epsilon is None else f"{epsilon:.1f}"
        lines.append(
            f"patient-level DP      epsilon {said} at delta {record.dp.delta:g} "
            f"(PLD {record.dp.epsilon_pld}, PRV {record.dp.epsilon_prv})"
        )
    if (one := record.one_run) is not None:
        lines.append(
            f"audit of the DP step  at least {one.bound:.2f} of {one.claimed:.2f} "
            f"claimed; with a tenth of the noise {one.bound_with_bug:.2f} "
            f"({one.canaries} canaries)"
        )
        if one.bound_with_bug < one.claimed:
            lines.append(f"{'':22}which proves nothing, as it is below the claim")
    lines += _membership(record.membership)
    lines += _inversion(record.inversion)
    lines += [
        f"site {site.site:<16} share {site.share}, epsilon {site.epsilon}"
        for site in record.shares
    ]
    lines.append(f"gate of release       {_gate(record)}")
    return lines


def _gate(record: "PrivacyRecord") -> str:
    if record.refused:
        return f"closed: {'; '.join(record.refused)}"
    return "open" if record.gated else "none in the plan"


def _membership(got: "MembershipRecord | None") -> list[str]:
    """What the attack got, beside what guessing gets with as few cases."""
    from common.membership import FEWEST_OTHERS, guessed

    if got is None:
        return ["membership inference  not measured: no cases on this machine"]
    low, high = guessed(got.members, got.others)
    found = f"{got.found:.0%} of members found at 1 % FPR"
    if got.others < FEWEST_OTHERS:
        found = f"too few others for a figure at 1 % FPR: that takes {FEWEST_OTHERS}"
    return [
        f"membership inference  AUC {got.auc:.3f} ({got.members} members, {got.others} "
        f"others); guessing gets {low:.2f} to {high:.2f}",
        f"{'':22}{found}",
    ]


def _inversion(got: "InversionRecord | None") -> list[str]:
    """What came back of a picture, beside the control without which it says nothing."""
    if got is None:
        return ["gradient inversion    not measured"]
    control = f"SSIM {got.control:.2f} on its control (chance: {got.chance:.2f})"
    if not got.works:
        return [f"gradient inversion    {control}: the attack failed, proves nothing"]
    way = "one site in the clear" if got.sites == 1 else f"a sum of {got.sites} sites"
    if got.noise_multiplier is not None:
        way += f", DP with noise {got.noise_multiplier:.2f}"
    figures = f"the plan's network {got.network:.2f}"
    if got.defended is not None:
        figures = f"the control's network {got.defended:.2f}, {figures}"
    return [
        f"gradient inversion    {control}: the attack works",
        f"{'':22}on what the hub got ({way}):",
        f"{'':22}{figures}, {_length(got)}",
        f"{'':22}an attack that fails is no guarantee",
    ]


def _length(got: "InversionRecord") -> str:
    """How long the attacks went on."""
    from server.privacy_record import FULL_STEPS

    if got.was_cut:
        return (
            f"cut off after {got.steps} of {FULL_STEPS} steps, as time was up: more "
            "time gets more"
        )
    return f"{got.steps} steps"


def _rule(record: "PrivacyRecord") -> str:
    if record.aggregation == "mean":
        return "mean: believes every site"
    return f"{record.aggregation}: bears with some hostile sites, sees each update"
