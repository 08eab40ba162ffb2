"""From a site's folder to a service that is ready for orders."""

from dataclasses import replace
from pathlib import Path

import torch

from client.intake.run import take_in
from client.secret import load_secret
from client.service import SiteCases, SiteService
from client.site import SIGN_KEY, SiteConfig, read_site
from client.site_file import is_hospital
from client.store import CaseStore
from common.errors import EngineError, StoreError
from common.keys import read_signing_key
from common.plan import Plan


def open_site(folder: Path, plan: Plan) -> SiteService:
    """Take in what is new at the source, open the store, build the network.

    Args:
        folder: The site's folder.
        plan: A plan that the site approved.

    Raises:
        FedctError: The folder is not a site's, a hospital has no key, the source can't
            be read, it has fewer accepted cases than the plan's floor, or the plan
            needs a GPU.
    """
    config = read_site(folder)
    device = choose_device(config.device)
    if plan.training.amp == "fp16" and device.type != "cuda":
        raise EngineError(
            f"site {config.name!r} got a plan with training.amp 'fp16' and computes on "
            "a CPU, expected a GPU; set training.amp to 'bf16' or 'off'"
        )
    members = [Path(member) for member in config.members] or [folder]
    cases = tuple(open_cases(member, plan) for member in members)
    identity = read_signing_key(folder / SIGN_KEY) if is_hospital(folder) else None
    return SiteService(config.name, folder, plan, cases, device, identity)


def open_cases(folder: Path, plan: Plan) -> SiteCases:
    """The cases of one site's folder, prepared for a plan."""
    config: SiteConfig = read_site(folder)
    if config.source is None:
        raise StoreError(
            f"site {config.name!r} has no source, expected a folder of images"
        )
    root = folder / "store"
    data = take_in(config.source, root, plan)
    if config.public:
        everything = (*data.train, *data.validation, *data.test)
        data = replace(data, train=(), validation=(), test=everything)
    return SiteCases(CaseStore(root, load_secret(root)), data)


def choose_device(wanted: str) -> torch.device:
    """The device that a site's config asks for.

    Raises:
        EngineError: There is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise EngineError(
            f"site asked for device {wanted!r}, expected auto, cpu, cuda or cuda:N"
        )
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise EngineError(
            f"site asked for device {wanted!r}, found {gpus} usable GPUs; "
            "check the driver, or set the device to 'cpu'"
        )
    return device
