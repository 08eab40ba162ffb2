"""Pictures back from updates: in the clear, from a sum, under masks, with DP."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.secret_random import SecretStream
from common.errors import ContributionError, FedctError, PlanError
from common.exchange import Hello, TrainOrder
from common.networks import build_network
from common.parameters import digest_of, layout_of, to_vector
from common.plan_file import parse_plan, plan_toml
from common.task import Batch
from deploy.inversion import (
    Sight,
    SigmoidNet,
    gradient_of,
    invert,
    invert_by_direction,
    likeness,
)
from deploy.inversion_audit import CONTROL, SIDE, Way, blurred, patients, sight_of
from tests.attacks.imprint import Imprint, first_layer, psnr, read_off
from tests.attacks.phantom_sites import open_sites
from tests.attacks.rows import SERVER, row
from tests.common.secagg.cohort import cohort

SITES = 5
KNOWN = 0.5
"""SSIM above which a picture counts as recovered; another patient's is about 0."""
SEGMENT = """
[plan]
name = "inversion"
[task]
kind = "segmentation"
classes = { nodule = ["nodule"] }
[model]
name = "UNet"
dimensions = 2
channels = [8, 16]
residual_units = 0
norm = "instance"
[training]
steps = 1
batch_size = 1
patch = [32, 32]
optimizer = "sgd"
momentum = 0.0
weight_decay = 0.0
learning_rate = 1.0
schedule = "constant"
[federation]
rounds = 1
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def secure_sum(vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the hub gets of one site, and the mean that it may open."""
    group = cohort(count=len(vectors), size=vectors[0].size, weight_cap=1)
    deltas = dict(zip(group.terms.sites, vectors, strict=True))
    masked = group.masked(deltas, dict.fromkeys(deltas, 1))
    first = masked[group.terms.sites[0]][: vectors[0].size].view(np.int32)
    seen = first * (group.terms.mask_range / group.terms.limit)
    return seen.astype(np.float32), group.opened(masked).mean


@row(
    SERVER,
    "gradient inversion (L-BFGS, labels known) of one step, no-norm sigmoid network",
    "masks and their sum over five sites; DP-SGD by patient",
    short=True,
)
def test_a_picture_comes_back_in_the_clear_and_not_through_masks_or_noise(told):
    plan, network = parse_plan(CONTROL), SigmoidNet(0, SIDE)
    five = patients(SITES, (SIDE, SIDE))
    truth = five[0].image
    vectors = [gradient_of(network, plan, one).numpy() for one in five]
    masked, opened = secure_sum(vectors)

    def found(seen: np.ndarray) -> float:
        sight = Sight(network, plan, torch.from_numpy(seen), five[:1], [1.0])
        return likeness(invert(sight, steps=200).pictures, truth)

    clear, hidden = found(vectors[0]), found(masked)
    noisy = sight_of(network, plan, five[:1], Way((1.0,), 1.0, 1.0))
    dp = likeness(invert(noisy, steps=200).pictures, truth)
    shares = [1.0 / SITES] * SITES
    summed = Sight(network, plan, torch.from_numpy(opened), five, shares)
    together = invert(summed, steps=400).pictures
    each = [likeness(together, patient.image) for patient in five]
    other = likeness(five[1].image, truth)
    told(
        f"clear: SSIM {clear:.2f} (another patient's picture: {other:.2f})",
        f"one site under masks {hidden:.2f}; sum of five {min(each):.2f} to "
        f"{max(each):.2f}, {sum(s > KNOWN for s in each)} of 5 recovered (no "
        f"guarantee); DP, sigma 1: {dp:.2f}",
    )
    assert clear > 0.6
    assert hidden < 0.2
    assert dp < 0.2
    assert sum(s > KNOWN for s in each) < SITES


@row(
    SERVER,
    "gradient inversion of one step, U-Net that a plan names (instance norm)",
    "none: in the clear",
)
def test_two_such_attacks_get_little_from_a_plans_unet_which_proves_nothing(told):
    known = patients(1, (SIDE, SIDE))
    true = known[0].image
    sigmoid = sight_of(SigmoidNet(0, SIDE), parse_plan(CONTROL), known, Way())
    control = likeness(invert(sigmoid, steps=200).pictures, true)
    plan = parse_plan(SEGMENT)
    sight = sight_of(build_network(plan, 1, 1), plan, known, Way())
    got = likeness(invert(sight, steps=200).pictures, true)
    turned = likeness(invert_by_direction(sight, steps=400).pictures, true)
    told(
        f"sigmoid network: SSIM {control:.2f}",
        f"U-Net: SSIM {got:.2f} by L-BFGS, {turned:.2f} by direction (Geiping 2020); "
        "no guarantee",
    )
    assert control > 0.6


def joined(batches: Sequence[Batch]) -> Batch:
    """Several patients as one batch."""
    return Batch(
        torch.cat([b.image for b in batches]),
        torch.cat([b.mask for b in batches]),
        torch.cat([b.label for b in batches]),
    )


IMAGES = 4
"""Pictures a site trains on in the one step."""


@row(
    SERVER,
    "imprint model (Fowl 2022): 20 pictures of five sites from their sum",
    "a plan can't name it, and a site trains no other layout; DP-SGD by patient",
    short=True,
)
def test_an_imprint_model_reads_the_sum_and_no_site_would_run_it(tmp_path, told):
    plan = parse_plan(CONTROL)
    everybody = patients(SITES * IMAGES, (SIDE, SIDE))
    brightness = [float(p.image.mean()) for p in everybody]
    network = Imprint(min(brightness) - 0.01, max(brightness) + 0.01)
    vectors = []
    for site in range(SITES):
        own = everybody[site * IMAGES : (site + 1) * IMAGES]
        vectors.append(gradient_of(network, plan, joined(own)).numpy())
    single = [gradient_of(network, plan, patient) for patient in everybody]
    _, opened = secure_sum(vectors)
    seen = {
        "mean": torch.from_numpy(np.mean(vectors, axis=0, dtype=np.float32)),
        "secure sum": torch.from_numpy(opened),
        "DP, sigma 0.1": blurred(single, 1.0, 0.1, SecretStream(bytes(32))),
    }
    counts, best = {}, {}
    for name, vector in seen.items():
        weight, bias = first_layer(vector)
        dbs = [psnr(read_off(weight, bias), p.image) for p in everybody]
        counts[name] = sum(db > 30.0 for db in dbs)
        best[name] = float(np.median(dbs))
    refusals = refused(tmp_path, network)
    told(
        "; ".join(
            f"{name}: {counts[name]} of 20, median {best[name]:.0f} dB"
            for name in ("mean", "secure sum")
        ),
        f"refused by {', '.join(refusals)}; DP (sigma 0.1): "
        f"{counts['DP, sigma 0.1']} of 20",
    )
    assert counts["mean"] >= 18
    assert counts["secure sum"] >= 18
    assert counts["DP, sigma 0.1"] == 0
    assert len(refusals) == 3


def refused(folder, network) -> list[str]:
    """Which checks of the product refuse to run the imprint model."""
    said = []
    with pytest.raises(PlanError, match="model"):
        parse_plan(CONTROL.replace('"LinearProbe"', '"Imprint"'))
    said.append("the plan's format")
    plan = parse_plan(SEGMENT)
    site = open_sites(folder, plan, 1, 6, side=32).trainers["site-1"]
    layout = layout_of(network, keep_norms_local=False)
    text = plan_toml(plan)
    with pytest.raises(ContributionError, match="layout"):
        site.hello(Hello("run", plan.digest, text, layout.digest))
    said.append("the site at the roll call")
    model = to_vector(network, layout)
    order = TrainOrder("run", plan.digest, 1, 0, model, digest_of(model))
    with pytest.raises(FedctError, match="expected"):
        site.train(order, lambda done, steps: None)
    said.append("the site at the order")
    small = replace(order, model=model[:4], model_digest=digest_of(model[:4]))
    with pytest.raises(FedctError, match="expected"):
        site.train(small, lambda done, steps: None)
    return said
