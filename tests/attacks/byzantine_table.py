"""Hostile sites against every rule of aggregation: Dice by cell.

    python -m tests.attacks.byzantine_table [--short]

Seven near-identical synthetic hospitals train a small U-Net for a few rounds; two or
three of them are hostile, and what they send is made knowing all that the honest ones
sent. The sites' service, the rules and the server's step are the product's own, and
each plan is told the true number of hostile sites; a rule that can't bear with so many
of seven is refused by the plan.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import PlanError
from common.plan import Plan
from common.plan_file import parse_plan
from server.aggregate import norm_of
from server.robust import open_aggregate
from server.server_step import first_state, server_step
from tests.attacks.phantom_sites import open_sites

SITES, PATIENTS = 7, 8
PLAN = """
[plan]
name = "byzantine"
[task]
kind = "segmentation"
classes = { nodule = ["nodule"] }
[model]
name = "UNet"
dimensions = 2
channels = [8, 16]
residual_units = 0
[preprocessing]
window_hu = [0.0, 255.0]
[training]
steps = 5
batch_size = 8
patch = [48, 48]
learning_rate = 1e-2
schedule = "constant"
foreground = 0.0
keep_optimizer_state = false
[federation]
rounds = 4
min_sites = 7
aggregation = "RULE"
faulty_sites = HOSTILE
[evaluation]
region = "window"
surface = false
[data]
validation = 0.0
test = 0.0
"""
RULES = (
    "mean",
    "clipped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
)
Twist = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""From the site's own update [P] and those of the honest sites [N P] to what it
sends."""


def sign_flip(own: np.ndarray, honest: np.ndarray, rng: object) -> np.ndarray:
    """Five times its own update, backwards."""
    return -5.0 * own


def noise(own: np.ndarray, honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, ten times as long as an honest update."""
    noise = rng.normal(size=own.size)
    return noise * (10.0 * np.linalg.norm(own) / np.linalg.norm(noise))


def alie(z: float) -> Twist:
    """A little is enough (Baruch 2019, arXiv 1902.06156): mean less z deviations."""
    return lambda own, honest, rng: honest.mean(axis=0) - z * honest.std(axis=0)


def opposed(epsilon: float) -> Twist:
    """Inner product manipulation (Xie 2020, arXiv 1903.03936): -epsilon x the mean."""
    return lambda own, honest, rng: -epsilon * honest.mean(axis=0)


def honestly(own: np.ndarray, honest: np.ndarray, rng: object) -> np.ndarray:
    """Its own update; what it learnt from may be wrong."""
    return own


@dataclass(frozen=True)
class Attack:
    """What the hostile sites do."""

    hostile: int
    twist: Twist = honestly
    flips: bool = False
    """Whether they learn from foreground and background exchanged."""


ATTACKS: Mapping[str, Attack] = {
    "none": Attack(2),
    "sign flip x5, 2 sites": Attack(2, sign_flip),
    "label flip, 2 sites": Attack(2, flips=True),
    "label flip, 3 sites": Attack(3, flips=True),
    "Gaussian noise x10, 2 sites": Attack(2, noise),
    "ALIE, z = 1.5, 2 sites": Attack(2, alie(1.5)),
    "ALIE, z = 20, 2 sites": Attack(2, alie(20.0)),
    "inner product, epsilon = 0.5, 2 sites": Attack(2, opposed(0.5)),
    "inner product, epsilon = 5, 2 sites": Attack(2, opposed(5.0)),
}


def plan_for(rule: str, hostile: int) -> Plan:
    """The plan with one rule of aggregation.

    Raises:
        PlanError: The rule can't bear with so many of so few.
    """
    return parse_plan(PLAN.replace("RULE", rule).replace("HOSTILE", str(hostile)))


class Table:
    """Runs cells; honest updates from the same model are worked out once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        torch.set_num_threads(1)
        plan = plan_for("mean", 0)
        self._sites = open_sites(folder / "sites", plan, SITES, PATIENTS)
        self._lying = open_sites(folder / "lying", plan, 3, PATIENTS)
        for name in self._lying.trainers:
            self._lying.flip_labels(name)
        self._known: dict[tuple[int, bytes], np.ndarray] = {}

    def dice(self, name: str, rule: str) -> float | None:
        """Dice of the model after the plan's rounds; None: the plan is refused."""
        attack = ATTACKS[name]
        try:
            federation = plan_for(rule, attack.hostile).federation
        except PlanError:
            return None
        state = first_state(self._sites.first, federation)
        last_norm = None
        for number in range(1, federation.rounds + 1):
            held = open_aggregate(
                federation,
                state.model.size,
                min_sites=SITES,
                folder=self._folder,
                usual_norm=last_norm or norm_of(state.model),
                last_norm=last_norm,
            )
            sent = self._sent(attack, state.model, number)
            norms = [
                held.add(f"site-{n}", update, 1.0) for n, update in enumerate(sent, 1)
            ]
            last_norm = float(np.median(norms))
            state = server_step(state, held.mean(), None, federation)
        return self._sites.score(state.model)

    def _sent(self, attack: Attack, model: np.ndarray, number: int) -> list[np.ndarray]:
        """What the sites send in a round; the hostile ones first."""
        updates = self._honest(model, number)
        rng = np.random.default_rng(number)
        own, honest = list(updates[: attack.hostile]), updates[attack.hostile :]
        if attack.flips:
            liars = list(self._lying.trainers)[: attack.hostile]
            own = [self._lying.train(name, model, number) for name in liars]
        wide = honest.astype(np.float64)
        lies = [attack.twist(one, wide, rng).astype(np.float32) for one in own]
        return [*lies, *honest]

    def _honest(self, model: np.ndarray, number: int) -> np.ndarray:
        key = (number, model.tobytes())
        if key not in self._known:
            sites = self._sites
            self._known[key] = np.stack(
                [sites.train(name, model, number) for name in sites.trainers]
            )
        return self._known[key]


def markdown(
    cells: Mapping[tuple[str, str], float | None], rules: Sequence[str]
) -> str:
    """The cells as a table, an attack a row."""
    attacks = list(dict.fromkeys(attack for attack, _ in cells))
    lines = [f"| attack | {' | '.join(rules)} |", "|---" * (len(rules) + 1) + "|"]
    for attack in attacks:
        dice = " | ".join(_cell(cells[attack, rule]) for rule in rules)
        lines.append(f"| {attack} | {dice} |")
    return "\n".join(lines)


def _cell(dice: float | None) -> str:
    return "refused" if dice is None else f"{dice:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="three rules only")
    rules = RULES[::3] if parser.parse_args().short else RULES
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Path(folder))
        cells = {(a, r): table.dice(a, r) for a in ATTACKS for r in rules}
    print(markdown(cells, rules))


if __name__ == "__main__":
    main()
