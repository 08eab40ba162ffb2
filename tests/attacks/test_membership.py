"""Who was in the training set? The control is a model that learnt by heart."""

import numpy as np

from tests.attacks.membership import (
    Patients,
    by_likelihood,
    by_loss,
    overfitted,
    private,
    regularised,
)
from tests.attacks.rows import row

SHADOWS = 8


def said(name: str, got) -> str:
    return f"{name}: AUC {got.auc:.2f}, {got.found:.0%} found at 1 % FPR"


@row(
    "reader of the model",
    "membership inference by loss, one model",
    "early stop, decay, augmentation (no guarantee)",
    short=True,
)
def test_what_was_learnt_by_heart_tells_its_patients(tmp_path, told):
    heart = by_loss(*Patients(tmp_path / "heart", overfitted()).losses(0))
    held = by_loss(*Patients(tmp_path / "held", regularised()).losses(0))
    told(said("overfitted", heart), said("regularised", held))
    assert heart.auc > 0.9
    assert heart.found > 0.5
    assert held.auc < 0.75


@row(
    "reader of the model",
    f"membership inference, {SHADOWS} models (loss, and likelihood ratio)",
    "early stop, decay, augmentation (no guarantee)",
)
def test_shadow_models_tell_the_patients_of_the_overfitted_model(tmp_path, told):
    figures = {}
    for name, plan in (("overfitted", overfitted()), ("regularised", regularised())):
        patients = Patients(tmp_path / name, plan)
        pairs = [patients.losses(number) for number in range(SHADOWS)]
        member = np.array([m for m, _ in pairs])
        losses = np.array([loss for _, loss in pairs])
        figures[name] = by_loss(member, losses), by_likelihood(member, losses)
    heart, held = figures["overfitted"], figures["regularised"]
    told(
        f"overfitted: {said('loss', heart[0])}; {said('LiRA', heart[1])}",
        f"regularised: {said('loss', held[0])}; {said('LiRA', held[1])}",
    )
    assert min(heart[0].auc, heart[1].auc) > 0.9
    assert heart[1].found > 0.5
    assert max(held[0].auc, held[1].auc) < 0.75


@row(
    "reader of the model",
    "membership inference by loss, 2 models of as many steps",
    "DP-SGD by patient, epsilon 8 at delta 1e-5",
)
def test_with_dp_as_many_steps_tell_nobody(tmp_path, told):
    figures = {}
    for name, plan in (("overfitted", overfitted()), ("private", private())):
        patients = Patients(tmp_path / name, plan)
        pairs = [patients.losses(number) for number in range(2)]
        figures[name] = by_loss(*(np.array(part) for part in zip(*pairs, strict=True)))
    told(
        said("overfitted", figures["overfitted"]),
        said("DP", figures["private"]),
    )
    assert figures["overfitted"].auc > 0.9
    assert figures["private"].auc < 0.65
