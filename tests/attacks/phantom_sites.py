"""Near-identical synthetic hospitals that train and judge in this process.

Each is a `SiteService` over pictures of its own patients, so what they hand back is
what a hospital's service hands back, a function of model and round alone. The pictures
are simple, a bright nodule among vessels in noise, so that a small network learns them
in a minute: what an attack destroys must have been there.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from client.open_site import open_site
from client.service import SiteService
from client.site import SiteConfig, write_site
from common.exchange import JudgeOrder, TrainOrder
from common.parameters import digest_of, to_vector
from common.plan import Plan
from common.plan_file import plan_toml
from common.sources import Source
from common.tasks.catalog import task_of
from deploy.inversion_audit import ball, picture
from server.federation import first_model


@dataclass
class Sites:
    """Hospitals that train, and one that judges."""

    plan: Plan
    trainers: dict[str, SiteService]
    judge: SiteService

    @property
    def first(self) -> np.ndarray:
        """The model before round 1, float32[P]."""
        network, layout = first_model(self.plan)
        return to_vector(network, layout)

    def train(self, name: str, model: np.ndarray, number: int) -> np.ndarray:
        """A site's update, float32[P]."""
        order = TrainOrder(
            *("run", self.plan.digest, number, 0, model, digest_of(model))
        )
        return self.trainers[name].train(order, lambda done, steps: None).delta

    def flip_labels(self, name: str) -> None:
        """From now on this site takes foreground for background."""
        service = self.trainers[name]
        service._train = [
            replace(case, mask=1 - np.asarray(case.mask)) for case in service._train
        ]

    def score(self, model: np.ndarray) -> float:
        """Dice on patients whom no site has."""
        digest = digest_of(model)
        order = JudgeOrder("run", self.plan.digest, 1, 0, "test", model, digest)
        sums = self.judge.judge(order).sums
        return task_of(self.plan).summarise(sums)["dice"]


def open_sites(
    root: Path,
    plan: Plan,
    count: int,
    patients: int,
    *,
    side: int = 48,
    outlines_the_unseen: bool = False,
) -> Sites:
    """Write pictures of `count` hospitals, and open them.

    Args:
        root: A new folder.
        plan: What they train by.
        count: Hospitals that train; each has patients of its own, as has the judge.
        patients: In each.
        side: Pixels a side.
        outlines_the_unseen: Whether each mask holds a disc that the picture does not.
    """
    names = [f"site-{n + 1}" for n in range(count)]
    services = {}
    for seed, name in enumerate([*names, "judge"]):
        pictures = root / "pictures" / name
        rng = np.random.default_rng(seed)
        pairs = [_drawn(rng, side) for _ in range(patients)]
        if outlines_the_unseen:
            extra = [ball(rng, (side, side), rng.uniform(3.0, 5.0)) for _ in pairs]
            pairs = [
                (grey, mask | np.uint8(255) * disc)
                for (grey, mask), disc in zip(pairs, extra, strict=True)
            ]
        write_pictures(pictures, pairs)
        config = SiteConfig(
            name=name,
            source=Source(source=str(pictures), format="images"),
            public=name == "judge",
            device="cpu",
        )
        write_site(root / name, config, plan_toml(plan), plan.plan.seed)
        services[name] = open_site(root / name, plan)
    judge = services.pop("judge")
    return Sites(plan, services, judge)


def write_pictures(out: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """A picture and its mask for each patient, with their manifest."""
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    with (out / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "mask", "patient"))
        for number, (grey, mask) in enumerate(pairs):
            name = f"{number:04d}.png"
            Image.fromarray(grey).save(out / "images" / name)
            Image.fromarray(mask).save(out / "masks" / name)
            table.writerow((f"images/{name}", f"masks/{name}", f"PHANTOM-{number:04d}"))


def _drawn(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and mask (0 or 255), uint8[H W], of one patient."""
    return picture(rng, (side, side), (5.0, 9.0))
