"""Where a site's images lie: the only part of a plan file that is about one machine."""

from typing import Literal, Self

from pydantic import Field, model_validator

from common.plan_section import Name, Section

POOLED = "pooled"
"""Name of the node that trains on all sites' cases; a baseline."""
PUBLIC = "public"
"""Name of the node that holds the server's public cases; it never trains."""


class Source(Section):
    """Where one site's images lie, and what they are."""

    source: str
    """Folder or file; relative to `data_root`."""
    format: Literal["dicom", "nifti", "metaimage", "images"] = "dicom"
    """DICOM folder, NIfTI pairs, MetaImage with annotations.csv, PNG with
    manifest.csv."""
    where: dict[str, str] = {}
    """For `images`: take only rows whose columns have these values."""


class SimulatedSite(Source):
    """`[[simulation.sites]]`: one hospital of the rehearsal."""

    name: Name
    """Name of the site; not that of a node which a rehearsal has besides."""


class Simulation(Section):
    """`[simulation]`: the rehearsal on this machine; not part of the plan's hash."""

    data_root: str = "."
    """Folder that sources are relative to; itself relative to the plan's file."""
    sites: list[SimulatedSite] = Field(min_length=1)
    """The hospitals."""
    public: Source | None = None
    """Cases that the server may show and evaluate on."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [site.name for site in self.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"site name {twice[0]!r} is used twice")
        if taken := [name for name in names if name in (POOLED, PUBLIC)]:
            raise ValueError(
                f"site name {taken[0]!r} is that of a rehearsal's own node; rename the "
                "site"
            )
        return self
