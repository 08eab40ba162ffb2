"""Which patient trains, validates and tests: decided once, then frozen.

The split is by patient, never by slice or series, because two scans of one patient are
near copies. A part, once given, is kept for ever: a test patient that later trained
would turn every test figure into a memory test. New patients fill up what is lacking.

The order in which patients are dealt out is a hash of plan seed and patient id. It does
not depend on the site's random secret, so a rehearsal can be repeated; the manifest
itself names patients by pseudonym.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.private_files import write_private
from client.secret import pseudonym
from common.errors import StoreError
from common.plan import Data, Plan

SPLIT_FILE = "split.json"


class Part(StrEnum):
    """What a patient's cases are for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class SplitManifest(BaseModel):
    """The content of `split.json`; local, never sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    """Version of this format."""
    secret_check: str
    """Tells whether the pseudonyms were made with the secret at hand."""
    parts: dict[str, Part]
    """Pseudonym of a patient to part."""
    checksum: str
    """sha256 (hex) of the parts: an edited manifest is refused."""


def split_patients(
    patients: Iterable[str], known: Mapping[str, Part], plan: Plan
) -> dict[str, Part]:
    """A part for every patient; those known keep theirs.

    New patients go, one by one in hashed order, to the part that lacks most of its
    share of all patients at hand. For patients that are all new the shares are met
    exactly (see `shares`).

    Args:
        patients: Ids of the patients at hand.
        known: Parts given before.
        plan: Gives fractions and seed.
    """
    at_hand = set(patients)
    parts = {patient: known[patient] for patient in at_hand if patient in known}
    wanted, have = shares(len(at_hand), plan.data), Counter(parts.values())
    new = at_hand - parts.keys()
    for patient in sorted(new, key=lambda p: _order(plan.plan.seed, p)):
        part = max(Part, key=lambda p: wanted[p] - have[p])
        parts[patient] = part
        have[part] += 1
    return parts


def shares(count: int, data: Data) -> dict[Part, int]:
    """How many of so many patients each part gets.

    Fractions are rounded. From three patients on, a part with a fraction above zero has
    at least one; training has at least one always.
    """
    least = 1 if count >= 3 else 0
    test = max(round(data.test * count), least if data.test else 0)
    validation = max(round(data.validation * count), least if data.validation else 0)
    while test + validation > count - 1:  # at most twice, as the fractions sum below 1
        test, validation = (
            (test - 1, validation) if test > validation else (test, validation - 1)
        )
    return {
        Part.TRAIN: count - validation - test,
        Part.VALIDATION: validation,
        Part.TEST: test,
    }


def freeze_split(
    folder: Path, secret: bytes, patients: Iterable[str], plan: Plan
) -> dict[str, Part]:
    """The part of each patient at hand; new ones are added to the manifest.

    Args:
        folder: The store's folder.
        secret: The site's; makes the pseudonyms of the manifest.
        patients: Ids as the source has them.
        plan: Gives fractions and seed.

    Raises:
        StoreError: The manifest is damaged or was made with another secret.
    """
    frozen = load_split(folder, secret)
    named = {patient: pseudonym(secret, patient) for patient in patients}
    known = {p: frozen[name] for p, name in named.items() if name in frozen}
    parts = split_patients(named, known, plan)
    grown = frozen | {named[patient]: part for patient, part in parts.items()}
    if grown != frozen:
        manifest = SplitManifest(
            secret_check=_check(secret), parts=grown, checksum=_checksum(grown)
        )
        write_private(
            folder / SPLIT_FILE, manifest.model_dump_json(indent=1).encode() + b"\n"
        )
    return parts


def load_split(folder: Path, secret: bytes) -> dict[str, Part]:
    """Parts by pseudonym, empty where nothing was split yet.

    Raises:
        StoreError: The manifest is damaged or was made with another secret.
    """
    path = folder / SPLIT_FILE
    if not path.exists():
        return {}
    try:
        manifest = SplitManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _refused(f"can't be read ({type(error).__name__})") from error
    if manifest.checksum != _checksum(manifest.parts):
        raise _refused("was altered")
    if manifest.secret_check != _check(secret):
        raise _refused("belongs to another secret")
    return manifest.parts


def _order(seed: int, patient: str) -> bytes:
    text = f"{seed}/{patient}".encode(errors="surrogateescape")
    return hashlib.sha256(text).digest()


def _check(secret: bytes) -> str:
    return pseudonym(secret, SPLIT_FILE)


def _checksum(parts: Mapping[str, Part]) -> str:
    text = json.dumps(sorted(parts.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _refused(what: str) -> StoreError:
    return StoreError(
        f"store got a {SPLIT_FILE} that {what}, expected it as it was written; put it "
        "back from a backup. Without it, test patients would be drawn anew"
    )
