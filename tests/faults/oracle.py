"""The model that each round of a run must have, worked out again from its journal.

An independent slow implementation: it trains every site whose update the journal says
was accepted, alone, in this process, on a copy of the site's store, and averages with
six lines of NumPy. Sites, rounds and cases are all it is told; what went wrong on the
way it cannot know. So if each round's model is the same to the bit, the model was a
function of the recorded site sets only, each update counted once, and a run that was
killed and resumed is the run that was not.
"""

import hmac
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from client.open_site import open_site
from client.service import SiteService
from client.site_file import CLIENT_FILE, SIGN_KEY
from common.canonical import items
from common.exchange import TrainOrder, Update
from common.keys import read_signing_key
from common.parameters import digest_of, to_vector
from common.plan import Plan
from server.federation import first_model
from server.journal import Entry


class Oracle:
    """Copies of the sites, and what was worked out so far."""

    def __init__(self, folder: Path, sites: dict[str, Path]) -> None:
        """Prepare to copy `sites` (name to folder) below `folder`."""
        self._folder, self._sites = folder, sites
        self._services: dict[tuple[str, str], SiteService] = {}
        self._runs = 0

    def models(self, plan: Plan, done: Sequence[Entry]) -> list[np.ndarray]:
        """The model after each round, float32[P]."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as at the sites: sums depend on it
        try:
            return self._models(plan, done)
        finally:
            torch.set_num_threads(threads)

    def _models(self, plan: Plan, done: Sequence[Entry]) -> list[np.ndarray]:
        self._runs += 1
        run, since = f"oracle-{self._runs}", dict.fromkeys(self._sites, 0)
        network, layout = first_model(plan)
        model, models = to_vector(network, layout), []
        # As told at the roll call: a site is in a row with its cases once it answered.
        told = [row for entry in done for row in entry.record.sites]
        weights = {s: max(row.cases for row in told if row.site == s) for s in since}
        for entry in done:
            number, rows = entry.record.number, entry.record.sites
            updates = []
            for site in [row.site for row in rows if row.outcome == "accepted"]:
                begin = 0 if entry.record.began_anew else since[site]
                order = TrainOrder(
                    *(run, plan.digest, number, begin, model, digest_of(model))
                )
                updates.append(self._service(site, plan).train(order, _ignore))
            masked = entry.record.updates == "under masks"
            if masked and entry.record.outcome == "closed":
                drawn = {u.site: self._drawn(u) for u in updates}
                model = model + _masked_mean(plan, updates, drawn, weights)
                since |= {update.site: number for update in updates}
            elif not masked and len(updates) >= plan.federation.min_sites:
                model = model + _mean([(u.delta, u.cases) for u in updates])
                since |= {update.site: number for update in updates}
            models.append(model)
        return models

    def _service(self, site: str, plan: Plan) -> SiteService:
        if (site, plan.digest) not in self._services:
            folder = self._folder / site
            if not folder.exists():
                shutil.copytree(self._sites[site] / "store", folder / "store")
                (folder / SIGN_KEY).parent.mkdir(mode=0o700)
                for name in (CLIENT_FILE, SIGN_KEY):  # its draws follow from its key
                    shutil.copy(self._sites[site] / name, folder / name)
            self._services[site, plan.digest] = open_site(folder, plan)
        return self._services[site, plan.digest]

    def _drawn(self, update: Update) -> np.ndarray:
        """What the site rounds by in this round: an AES-256 keystream, by HKDF."""
        secret = read_signing_key(self._sites[update.site] / SIGN_KEY)
        told = {
            "purpose": "fedct rounding",
            "plan": update.plan_digest,
            "round": update.round,
        }
        pseudo = hmac.digest(bytes(32), secret.private_bytes_raw(), "sha256")
        key = hmac.digest(pseudo, items(told) + b"\x01", "sha256")
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        words = np.frombuffer(stream.update(bytes(4 * update.delta.size)), "<u4")
        return (words >> 8) / 2.0**24


def _mean(updates: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    total = np.zeros_like(updates[0][0])
    for delta, cases in updates:
        total += delta * np.float32(cases)
    return total / np.float32(sum(cases for _, cases in updates))


def _masked_mean(
    plan: Plan,
    updates: Sequence[Update],
    drawn: dict[str, np.ndarray],
    weights: dict[str, int],
) -> np.ndarray:
    """What masks come to without any: fixed-point numbers, added as integers."""
    bound, cap = plan.privacy.cut_at, max(weights.values())
    limit = (2**31 - 1) // len(weights)
    total = np.zeros(updates[0].delta.size, np.int64)
    for update in updates:
        scale = limit * weights[update.site] / (bound * cap)
        cut = np.clip(update.delta.astype(np.float64), -bound, bound)
        total += np.floor(cut * scale + drawn[update.site]).astype(np.int64)
    weight = sum(weights[update.site] for update in updates)
    return (total * (bound * cap / limit / weight)).astype(np.float32)


def _ignore(done: int, steps: int) -> None: ...
