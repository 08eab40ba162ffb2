"""A hospital's folder: where things lie in it, and `client.toml`, its own settings.

    client.toml     what belongs to this hospital: data, device, network, policy
    keys/           its three private keys; none ever leaves
    tls/            certificates: its own, and the hub's authority's; the join kit
    store/  state/  plans/  what it trains on, remembers, approved
    desk/  logs/  cache/

No plan and no server can change what stands here; the hub learns the name alone.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from client.policy import Policy
from common.certificates import check_site_name, host_of
from common.errors import JoinError
from common.joining import SiteName
from common.new_folder import check_finished
from common.settings_file import read_settings
from common.sources import Source

CLIENT_FILE: Final = "client.toml"
TLS_KEY: Final = Path("keys/tls.key")
NODE_KEY: Final = Path("keys/node.key")
SIGN_KEY: Final = Path("keys/sign.key")
SITE_CERTIFICATE: Final = Path("tls/site.crt")
AUTHORITY: Final = Path("tls/ca.crt")
KIT: Final = Path("tls/kit.json")
PARTS: Final = ("keys", "tls", "store", "state", "plans")
REQUEST: Final = "fedct client request"

_TEMPLATE = """\
# This hospital's own settings. Of all of it, the hub learns the name only.
{name}
# "auto" (the first GPU if there is one), "cpu", "cuda" or one GPU, "cuda:1"
{device}
# CPU threads; all cores without it
{threads}

[hub]
# where this hospital reaches the hub: the only connection out
{address}

[network]
# HTTP proxy of the hospital, like http://proxy.example.org:3128; none without it
{proxy}

[policy]
# No plan and no server can change these; they are checked before any work, and again
# before an answer leaves (docs/howto/set-a-policy.md).
# "ask": a plan waits until the engineer approves it; "auto": any plan trains;
# "listed": only one whose hash stands in plans. Those in plans never wait
{approve}
{plans}
# fewest sites that a plan must need for a round to count, or a masked sum to be opened
{min_sites}
# whether an update leaves only under the masks of secure aggregation
{secure_aggregation}
# most rounds in a run; without it, as many as the plan has
{max_rounds}
# most runs by one plan; a plan with another seed is another one (under masks, two runs
# by one plan that differ by one site tell its update: 1 rules that out)
{max_runs}
# when orders are begun, by this machine's clock; at any hour without it
{hours}
# largest Euclidean norm of an update; under masks it is measured before them
{max_update_norm}
# which answers may leave: "roster", "update", "judgement"
{answers}
# numbers of cases and series: "rounded" to tens, at least ten, or "exact"
{counts}
# fewest held-out cases over which sums of metrics leave
{min_judged}
# what all training may ever cost each patient, and the chance of losing more; plans
# without differential privacy are refused then (fedct client ledger)
{dp_epsilon}
{dp_delta}

# where the images lie, and what they are: dicom, nifti, metaimage or images
{data}"""


class _Table(BaseModel):
    """A table of the file: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HubAddress(_Table):
    """`[hub]`: where the hub is reached."""

    address: str
    """host:port; an IPv6 address in brackets."""

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        bracketed = re.fullmatch(r"\[(.+:.+)\]", host)
        sound = port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535
        try:
            host_of(bracketed[1] if bracketed else host)
        except JoinError:
            sound = False
        if not sound or (":" in host and not bracketed):
            raise ValueError("expected host:port, like hub.example.org:8443")
        return address

    @property
    def host(self) -> str:
        """DNS name or IP address, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])


class Network(_Table):
    """`[network]`: the way out of the hospital."""

    proxy: str | None = None
    """HTTP proxy that outgoing connections have to take, http://host:port."""

    @field_validator("proxy")
    @classmethod
    def _is_a_url(cls, proxy: str | None) -> str | None:
        if proxy is None:
            return None
        parts = urlsplit(proxy)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host:port")
        if parts.port is None or parts.path.strip("/") or parts.query:
            raise ValueError("expected http://host:port and nothing more")
        return proxy


class SiteFile(_Table):
    """The content of `client.toml`."""

    name: SiteName
    """Name of the site in the federation; its certificate is made out to it."""
    device: str = "auto"
    """"auto": the first GPU if there is one; "cpu"; or a device like "cuda:1"."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; unset: all cores."""
    hub: HubAddress
    """The hub."""
    network: Network = Network()
    """The way there."""
    policy: Policy = Policy()
    """What may happen here."""
    data: Source
    """The images; the path is absolute."""

    @field_validator("data")
    @classmethod
    def _path_is_absolute(cls, data: Source) -> Source:
        if not Path(data.source).is_absolute():
            raise ValueError("source: expected an absolute path")
        return data


def new_settings(
    name: str,
    hub: str,
    data: Path,
    source_format: str,
    device: str = "auto",
    proxy: str | None = None,
) -> SiteFile:
    """Settings from what the engineer typed.

    Raises:
        JoinError: A value is wrong, or there is no data at the path.
    """
    check_site_name(name)
    if not data.exists():
        raise JoinError(
            f"site {name!r} got --data {str(data)!r}, which does not exist here, "
            "expected the folder of its images; check the path and the mount"
        )
    content = {
        "name": name,
        "device": device,
        "hub": {"address": hub},
        "network": {"proxy": proxy},
        "data": {"source": str(data.resolve()), "format": source_format},
    }
    try:
        return SiteFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        where = ".".join(str(part) for part in first["loc"])
        raise JoinError(
            f"site {name!r} got {first['input']!r} for {where}: {message}"
        ) from error


def site_toml(settings: SiteFile) -> str:
    """The settings as a commented file."""
    return _TEMPLATE.format(
        name=_line("name", settings.name),
        device=_line("device", settings.device),
        threads=_line("threads", settings.threads, example=8),
        address=_line("address", settings.hub.address),
        proxy=_line("proxy", settings.network.proxy, example="http://host:3128"),
        **_policy_lines(settings.policy),
        data=tomli_w.dumps({"data": settings.data.model_dump(exclude_unset=True)}),
    )


def is_hospital(folder: Path) -> bool:
    """Whether a site's folder is a hospital's; else it is a rehearsal's."""
    return (folder / CLIENT_FILE).exists()


def read_site_file(folder: Path) -> SiteFile:
    """The settings of a hospital's folder.

    Raises:
        JoinError: It is none, is unfinished, or its settings are wrong by key and line.
    """
    check_finished(folder, REQUEST)
    return read_settings(folder / CLIENT_FILE, SiteFile, REQUEST)


def _policy_lines(policy: Policy) -> dict[str, str]:
    examples = {
        "max_rounds": 50,
        "hours": ["18:00-07:00"],
        "max_update_norm": 10.0,
        "dp_epsilon": 8.0,
    }
    lines = {}
    for key, value in policy.model_dump(mode="json").items():
        is_example = key in examples and not value
        lines[key] = _line(key, None if is_example else value, examples.get(key))
    return lines


def _line(key: str, value: Any, example: Any = None) -> str:
    """`key = value`; an example behind # where the value is not set."""
    if value is None:
        return f"# {_line(key, example)}" if example is not None else f"# {key} ="
    if isinstance(value, list):
        return f"{key} = {json.dumps(value)}"  # on one line, which TOML reads alike
    return tomli_w.dumps({key: value}).strip()
