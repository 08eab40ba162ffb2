"""`fedct client ledger`: what a hospital's patients have paid, and what is left."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:
    from client.ledger import Budget, Line
    from common.accounting import Cost

LEAST_DELTA, MOST_DELTA = 1e-15, 0.5
"""Chances that accountants can work with."""

site_app = typer.Typer()


@dataclass(frozen=True)
class RunPrice:
    """What one run has cost each patient here."""

    run: str
    """Id of the run."""
    plan: str
    """Digest of its plan."""
    rounds: int
    """Rounds that were paid for, each once."""
    payments: int
    """Lines of the ledger: more than rounds where some were trained anew."""
    steps: int
    """Noisy steps."""
    rate: float
    """Highest chance of a patient to be drawn for a step."""
    noise_multiplier: float
    """Lowest standard deviation of the noise, in clip norms."""
    epsilon_pld: float
    """By privacy loss distributions."""
    epsilon_prv: float
    """By the PRV accountant."""


@site_app.command("ledger")
def client_ledger(
    site: Annotated[Path, typer.Argument(help="The hospital's folder.")],
    delta: Annotated[
        float | None,
        typer.Option(help="Chance of losing more; the policy's without it."),
    ] = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Show what each training patient has paid, run by run and in all.

    All epsilons are exact, by two accountants; of both the larger counts. Where that
    would take minutes (an epsilon in the hundreds, or millions of steps) both are one
    upper bound. Exits with 23 and names the line if the ledger was changed, cut or
    taken away.

    Example: `fedct client ledger site --format json`
    """
    from client.dp_site import budget_of
    from client.ledger import Budget, read_ledger, steps_of
    from client.site import SITE_FILE
    from common.accounting import cost_of
    from common.errors import UsageError
    from deploy.cli_client import check_site

    if delta is not None and not LEAST_DELTA <= delta <= MOST_DELTA:  # NaN, too
        raise UsageError(
            f"option --delta got {delta}, expected {LEAST_DELTA:g} to {MOST_DELTA:g}"
        )
    if not (site / SITE_FILE).is_file():  # a rehearsal's folder keeps a ledger, too
        check_site(site)
    lines, budget = read_ledger(site), budget_of(site)
    budget = Budget(budget.epsilon, delta or budget.delta)
    runs = [
        _price(lines, run, budget.delta) for run in dict.fromkeys(x.run for x in lines)
    ]
    total = cost_of(map(steps_of, lines), budget.delta)
    if output_format is Format.JSON:
        typer.echo(json.dumps(_content(lines, runs, total, budget), indent=1))
    else:
        _print(lines, runs, total, budget)


def _price(lines: Sequence["Line"], run: str, delta: float) -> RunPrice:
    from client.ledger import steps_of
    from common.accounting import cost_of

    own = [line for line in lines if line.run == run]
    cost = cost_of(map(steps_of, own), delta)
    return RunPrice(
        run=run,
        plan=own[-1].plan,
        rounds=len({line.round for line in own}),
        payments=len(own),
        steps=sum(line.steps for line in own),
        rate=max(line.rate for line in own),
        noise_multiplier=min(line.noise_multiplier for line in own),
        epsilon_pld=cost.pld,
        epsilon_prv=cost.prv,
    )


def _content(
    lines: Sequence["Line"], runs: Sequence[RunPrice], total: "Cost", budget: "Budget"
) -> dict[str, object]:
    return {
        "delta": budget.delta,
        "epsilon_pld": total.pld,
        "epsilon_prv": total.prv,
        "epsilon": total.epsilon,
        "budget": budget.epsilon,
        "left": _left(total, budget),
        "runs": [vars(run) for run in runs],
        "lines": len(lines),
        "last_hash": lines[-1].hash if lines else None,
    }


def _print(
    lines: Sequence["Line"], runs: Sequence[RunPrice], total: "Cost", budget: "Budget"
) -> None:
    from deploy.site_tables import visible

    for run in runs:
        anew = run.payments - run.rounds
        again = f" ({anew} paid for again)" if anew else ""
        typer.echo(
            f"run {visible(run.run)}, plan {visible(run.plan[:12])}: {run.rounds} "
            f"rounds{again}, {run.steps} steps at rate {run.rate:.4f} and noise "
            f"{run.noise_multiplier:g}: epsilon {run.epsilon_pld:.3f} (PLD), "
            f"{run.epsilon_prv:.3f} (PRV)"
        )
    left = _left(total, budget)
    said = "no budget is set (policy.dp_epsilon)"
    if left is not None:
        said = f"{left:.3f} of {budget.epsilon:g} left"
    typer.echo(
        f"in all: epsilon {total.pld:.3f} (PLD), {total.prv:.3f} (PRV) at delta "
        f"{budget.delta:g}; {said}"
    )
    if lines:
        typer.echo(f"OK: {len(lines)} lines, last hash {lines[-1].hash}")


def _left(total: "Cost", budget: "Budget") -> float | None:
    if budget.epsilon is None:
        return None
    return max(0.0, budget.epsilon - total.epsilon)
