"""Membership inference against models that a site's service trained.

Forty synthetic patients, each with a structure outlined that the picture does not show:
what a network knows of those it can only have learnt by heart. Each model is trained
on half of the patients, drawn anew, so that each patient is a member of some models
and not of others.
"""

from pathlib import Path

import numpy as np
import torch

from client.dp_site import patients_of, terms_of
from common.membership import Membership, membership_of
from common.networks import build_network
from common.parameters import layout_of, load_vector
from common.plan import Plan
from common.task import Batch
from common.tasks.catalog import task_of
from tests.attacks.phantom_sites import open_sites
from tests.plans import SLICES
from tests.plans import plan as plan_of

PATIENTS = 40
OVERFITTED_STEPS = 300


def one_round(steps: int, **changes: object) -> Plan:
    """Of one site that trains for so many steps."""
    return plan_of(
        SLICES,
        plan__name="membership",
        model__channels=[8, 16, 32],
        training__steps=steps,
        training__batch_size=10,
        training__patch=[32, 32],
        training__schedule="constant",
        training__foreground=0.0,
        training__keep_optimizer_state=False,
        federation__rounds=1,
        federation__min_sites=1,
        data__validation=0.0,
        data__test=0.0,
        **changes,
    )


def overfitted() -> Plan:
    """Steps enough to learn twenty patients by heart."""
    return one_round(OVERFITTED_STEPS, training__weight_decay=0.0)


def regularised() -> Plan:
    """Stopped early, with weight decay, mirrored and shaded patches."""
    change = {
        "flip": ["H", "W"],
        "transpose": True,
        "scale": 0.1,
        "shift": 0.1,
        "noise": 0.1,
    }
    return one_round(40, training__weight_decay=0.05, training__augmentation=change)


def private() -> Plan:
    """As many steps as `overfitted`, at epsilon 8 for each patient."""
    dp = {"epsilon": 8.0}
    return one_round(OVERFITTED_STEPS, training__weight_decay=0.0, privacy__dp=dp)


class Patients:
    """The patients, and models trained on halves of them."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        torch.set_num_threads(1)
        self._plan = plan
        self._sites = open_sites(
            folder, plan, 1, PATIENTS, side=32, outlines_the_unseen=True
        )
        self._service = self._sites.trainers["site-1"]
        self._cases = list(self._service._train)

    def losses(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Train model `number`.

        Returns:
            Which patients it was trained on, bool[N], and its loss on each, [N].
        """
        rng = np.random.default_rng(number)
        member = np.zeros(PATIENTS, bool)
        member[rng.permutation(PATIENTS)[: PATIENTS // 2]] = True
        self._service._train = [
            c for c, m in zip(self._cases, member, strict=True) if m
        ]
        self._service._terms = terms_of(
            self._plan,
            patients_of(self._service._train),
            self._service._steps,
            self._sites.first.size,
        )
        first = self._sites.first
        model = first + self._sites.train("site-1", first, number + 1)
        return member, np.array(self._judge(model))

    def _judge(self, model: np.ndarray) -> list[float]:
        task = task_of(self._plan)
        network = build_network(self._plan, task.out_channels, 1)
        load_vector(network, layout_of(network, keep_norms_local=False), model)
        network.eval()
        losses = []
        for case in self._cases:
            image = torch.from_numpy(np.asarray(case.image, np.float32))[None]
            mask = torch.from_numpy(np.asarray(case.mask, np.int64))
            batch = Batch(image, mask, torch.zeros(1, dtype=torch.int64))
            with torch.no_grad():
                losses.append(float(task.loss(network(image), batch)))
        return losses


def by_loss(member: np.ndarray, losses: np.ndarray) -> Membership:
    """Whom the model knows best (Yeom 2018); one model or many, [N] or [K N]."""
    return membership_of(-losses[member], -losses[~member])


def by_likelihood(member: np.ndarray, losses: np.ndarray) -> Membership:
    """LiRA (Carlini 2022, algorithm 1), each model attacked with the others as shadows.

    A patient's confidence, on the scale of the logit, is held against two normal
    distributions: of the shadows that had the patient and of those that had not. With
    few shadows all patients share a variance (section VI.B).

    Args:
        member: bool[K N], which patients each model had.
        losses: [K N], of each model on each patient.
    """
    sure = -losses - np.log(-np.expm1(-np.maximum(losses, 1e-6)))
    scores = np.zeros_like(sure)
    for k in range(len(sure)):
        rest = np.arange(len(sure)) != k
        inside = np.where(member[rest], sure[rest], np.nan)
        outside = np.where(member[rest], np.nan, sure[rest])
        scores[k] = _log_normal(sure[k], inside) - _log_normal(sure[k], outside)
    return membership_of(scores[member], scores[~member])


def _log_normal(value: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Log density of each column's normal distribution, less a constant."""
    known = ~np.isnan(sample).all(axis=0)
    mean = np.full(sample.shape[1], np.nanmean(sample))
    mean[known] = np.nanmean(sample[:, known], axis=0)
    spread = np.sqrt(np.nanmean((sample - mean) ** 2)) + 1e-6
    return -np.log(spread) - (value - mean) ** 2 / (2 * spread**2)
