"""What one site is: its name, where its images lie, and the folder it works in.

A site's folder holds everything that belongs to this hospital and leaves it only as
numbers: `site.json` (this module), `plan.toml` (the plan it approved), `store/`
(prepared cases), `state/` (its optimiser between rounds), `keys/` (what it signs
with), `site.log`.
"""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.private_files import make_private_folder, write_private
from client.site_file import is_hospital, read_site_file
from common.errors import StoreError
from common.signing import make_signing_key
from common.sources import Source

SITE_FILE = "site.json"
PLAN_FILE = "plan.toml"
LOG_FILE = "site.log"
SIGN_KEY = "keys/sign.key"
"""Ed25519 key that signs every answer of the site."""


class SiteConfig(BaseModel):
    """The content of `site.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the site in the federation."""
    source: Source | None = None
    """Its images; the path is absolute. Unset for a pooled site."""
    public: bool = False
    """Whether these are the server's public cases: all are test cases, none trains."""
    members: tuple[str, ...] = ()
    """Rehearsals only: folders of the sites whose training cases are pooled here, for
    the baseline that no real federation can have."""
    device: Literal["auto", "cpu", "cuda"] | str = "auto"
    """"auto": the first GPU if there is one; "cpu"; or a device like "cuda:1"."""


def write_site(folder: Path, config: SiteConfig, plan_toml: str, seed: int) -> None:
    """Create a rehearsal's site: a folder of mode 0700, with config, plan, signing key.

    A key that is there already stays. A new one follows from the plan's seed and the
    name, as how a site rounds under masks follows from its key: so a rehearsal ends in
    the same model again. It is no secret, and need be none on one machine.
    """
    make_private_folder(folder)
    make_private_folder((folder / SIGN_KEY).parent)
    text = f"fedct rehearsal key/{seed}/{config.name}"
    make_signing_key(folder / SIGN_KEY, hashlib.sha256(text.encode()).digest())
    write_private(folder / SITE_FILE, config.model_dump_json(indent=2).encode())
    write_private(folder / PLAN_FILE, plan_toml.encode())


def read_site(folder: Path) -> SiteConfig:
    """The config of a site's folder: a hospital's `client.toml`, or a rehearsal's.

    Raises:
        StoreError: There is none, or it is damaged.
        JoinError: A hospital's settings are wrong, by key and line.
    """
    if is_hospital(folder):
        settings = read_site_file(folder)
        return SiteConfig(
            name=settings.name, source=settings.data, device=settings.device
        )
    try:
        return SiteConfig.model_validate_json((folder / SITE_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"site folder has no readable {SITE_FILE} ({type(error).__name__}), "
            "expected one that `fedct simulate` wrote; start the run anew"
        ) from error
