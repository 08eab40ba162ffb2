"""One small hospital of pictures, taken in once, and services that work on it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from client.audit import Left
from client.desk import check_approved
from client.open_site import open_cases
from client.policy import Policy
from client.service import SiteCases, SiteService
from client.site import SiteConfig, write_site
from client.site_file import CLIENT_FILE, SIGN_KEY, SiteFile, site_toml
from common.errors import PolicyError
from common.exchange import TrainOrder
from common.parameters import digest_of
from common.plan import Plan
from common.plan_file import parse_plan, plan_toml
from common.signing import make_signing_key
from common.sources import Source
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from server.federation import first_model
from tests.plans import SLICES
from tests.plans import plan as plan_of

ALGORITHMS = {
    "fedavg": {},
    "fedbn": {"model__norm": "batch"},
    "fedprox": {},
    "scaffold": {"training__optimizer": "sgd", "training__momentum": 0.0},
}


def slices(algorithm: str = "fedavg", **changes: object) -> Plan:
    """`SLICES` for an algorithm, with keys replaced."""
    changes = {"federation__algorithm": algorithm, **ALGORITHMS[algorithm], **changes}
    return plan_of(SLICES, **changes)


def write_hospital(
    folder: Path, policy: Policy, pictures: Path, where: Mapping[str, str] | None = None
) -> Path:
    """Write a hospital's folder, with a key to sign with; again for another policy.

    Args:
        folder: Its name is the site's.
        policy: The hospital's.
        pictures: The images, as `write_images` writes them.
        where: Which of them are this hospital's; unset: all.
    """
    (folder / "keys").mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    make_signing_key(folder / SIGN_KEY)
    content = {
        "name": folder.name,
        "device": "cpu",
        "hub": {"address": "hub.example.org:8443"},
        "policy": policy,
        "data": {"source": str(pictures), "format": "images", "where": where or {}},
    }
    (folder / CLIENT_FILE).write_text(site_toml(SiteFile.model_validate(content)))
    return folder


def is_approved(folder: Path, digest: str) -> bool:
    """Whether an order for the plan of this digest would be taken."""
    try:
        return bool(check_approved(folder, digest))
    except PolicyError:
        return False


@pytest.fixture(scope="session")
def hospital_pictures(tmp_path_factory) -> Path:
    """Pictures of two hospitals, five patients each; patients are PHANTOM-*."""
    folder = tmp_path_factory.mktemp("source") / "pictures"
    write_images(folder, hospitals=HOSPITALS[:2], patients=5, seed=1)
    return folder


@pytest.fixture(scope="session")
def make_site(hospital_pictures) -> Callable[..., Path]:
    """Writes a site's folder for one of the two hospitals."""

    def make(
        folder: Path,
        plan: Plan,
        *,
        vendor: int = 0,
        source: Path = hospital_pictures,
        members: Sequence[Path] = (),
        public: bool = False,
    ) -> Path:
        where = {"vendor": HOSPITALS[vendor].scanner.vendor}
        images = Source(source=str(source), format="images", where=where)
        config = SiteConfig(
            name=folder.name,
            source=None if members else images,
            public=public,
            members=tuple(map(str, members)),
            device="cpu",
        )
        write_site(folder, config, plan_toml(plan), plan.plan.seed)
        return folder

    return make


@pytest.fixture(scope="session")
def site_cases(tmp_path_factory, make_site) -> SiteCases:
    """The first hospital's cases, prepared once for all plans made by `slices`."""
    torch.set_num_threads(1)
    plan = parse_plan(SLICES)
    return open_cases(make_site(tmp_path_factory.mktemp("sites") / "north", plan), plan)


@pytest.fixture
def make_service(site_cases, tmp_path) -> Callable[..., SiteService]:
    """A service as a process has it that has just started in the site's folder."""

    def make(plan: Plan, folder: Path = tmp_path / "site") -> SiteService:
        return SiteService("north", folder, plan, (site_cases,), torch.device("cpu"))

    return make


def order(plan: Plan, number: int, since: int, **changes: object) -> TrainOrder:
    """Round `number` from a model that depends on plan and round alone."""
    size = first_model(plan)[1].size
    rng = np.random.default_rng(number)
    model = rng.normal(scale=0.1, size=size).astype(np.float32)
    control = None
    if plan.federation.algorithm == "scaffold":
        control = rng.normal(scale=0.01, size=size).astype(np.float32)
    given = {
        "run": "run",
        "plan_digest": plan.digest,
        "round": number,
        "state_round": since,
        "model": model,
        "control": control,
        **changes,
    }
    return TrainOrder(**{"model_digest": digest_of(given["model"]), **given})


def quiet(done: int, steps: int) -> None:
    """A progress callback that says nothing."""


def left(number: int = 1, **changes: object) -> Left:
    """What left with round `number`, for the audit log."""
    given = {
        "kind": "train",
        "run": "run-1",
        "round": number,
        "plan": "ab" * 32,
        "code": 0,
        "bytes_in": 4000,
        "bytes_out": 4000 + number,
        "to": "hub.example.org:8443",
        "what": "Update",
        "digest": hashlib.sha256(bytes([number])).hexdigest(),
        "policy": "cd" * 32,
        "allowed": "approved 2026-03-01 12:00 UTC",
        **changes,
    }
    return Left(**given)
