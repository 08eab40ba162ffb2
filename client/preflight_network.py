"""Preflight of the network: every layer between this site and its hub, by itself.

Nothing is sent to a hub that did not prove who it is, but the greeting of TLS and a
question for its health: the answer's date tells whose clock is wrong when a certificate
is out of its time.
"""

import ipaddress
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.request import getproxies

from cryptography import x509

from client.hub_road import HubAddress
from client.preflight_line import (
    HungUpError,
    LineError,
    UntriedError,
    ask,
    connect,
    proxy_of,
    shown,
    split_proxy,
    spoken,
    tls,
)
from client.preflight_row import Check, Row, failed, passed, warned

SKEW_WARN_S, SKEW_FAIL_S = 60.0, 300.0
"""Certificates are dated back by 300 s; a clock slower than that finds a new one
invalid."""
DAYS_WARN = 7
_TIMEOUT_S = 20.0
_UNTRUSTED = (2, 18, 19, 20, 21)
"""OpenSSL's X509_V_ERR_*: no or an unknown issuer, self-signed."""


def network_checks(line: HubAddress) -> list[Check]:
    """Every check of the line to the hub, in the order of its layers."""
    asked = {
        "proxy": check_proxy,
        "hub's name": check_name,
        "hub's port": check_port,
        "TLS 1.3": check_tls,
        "hub's certificate": check_hub_certificate,
        "accepted by the hub": check_accepted,
        "clock": check_clock,
    }
    return [
        Check(name, lambda check=check: check(line), _TIMEOUT_S)  # type: ignore[misc]
        for name, check in asked.items()
    ]


def check_proxy(line: HubAddress) -> Row:
    """Whether settings and environment agree on a proxy."""
    name, found = "proxy", getproxies()
    variable = found.get("https") or found.get("all")
    try:
        for url in filter(None, (line.proxy, variable)):
            split_proxy(url)
    except LineError as error:
        return failed(name, error.found, error.fix)
    if line.proxy is None and variable is not None and proxy_of(line) is not None:
        return warned(
            name,
            f"{shown(variable)}, from the environment alone",
            "write it into client.toml: a service has another environment",
        )
    if line.proxy is None:
        return passed(name, "none: the hub is reached directly")
    if variable is not None and shown(variable) != shown(line.proxy):
        return warned(
            name,
            f"client.toml says {shown(line.proxy)}, the environment {shown(variable)}",
            "client.toml counts; make them the same, or unset HTTPS_PROXY",
        )
    return passed(name, f"{shown(line.proxy)}, from client.toml")


def check_name(line: HubAddress) -> Row:
    """Whether the hub's name, or the proxy's, leads to an address."""
    name, host = "hub's name", line.host
    try:
        proxy = proxy_of(line)
        if proxy is not None:
            host = str(split_proxy(proxy).hostname)
        ipaddress.ip_address(host)
        return passed(name, f"{host} is an address, there is nothing to look up")
    except LineError as error:
        return failed(name, error.found, error.fix)
    except ValueError:
        pass
    what = "the hub" if host == line.host else "the proxy, which looks up the hub"
    try:
        infos = socket.getaddrinfo(host, line.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return failed(
            name,
            f"{host} ({what}) is not known here",
            "check the name, and this machine's name server (/etc/resolv.conf)",
        )
    addresses = ", ".join(sorted({str(info[4][0]) for info in infos}))
    return passed(name, f"{host} ({what}) is {addresses}")


def check_port(line: HubAddress) -> Row:
    """Whether a TCP connection reaches the hub's port."""
    name, start = "hub's port", time.monotonic()
    try:
        connect(line).close()
    except UntriedError as error:
        return _unreached(name, error)
    except LineError as error:
        return failed(name, error.found, error.fix)
    took_ms = 1000 * (time.monotonic() - start)
    proxy = proxy_of(line)
    way = "directly" if proxy is None else f"through {shown(proxy)}"
    return passed(name, f"{line.host}:{line.port} {way} in {took_ms:.0f} ms")


def check_tls(line: HubAddress) -> Row:
    """Whether TLS 1.3 is spoken all the way."""
    name = "TLS 1.3"
    try:
        with spoken(line, tls(line, verify=False)) as secure:
            cipher = secure.cipher()
            return passed(name, f"{secure.version()}, {cipher[0] if cipher else '?'}")
    except LineError as error:
        return _unreached(name, error)
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            return failed(
                name,
                "what answers at the hub's port does not speak TLS",
                "check the port; something between may answer in the hub's place",
            )
        return failed(
            name,
            f"the hub, or something between, does not speak TLS 1.3 ({error.reason})",
            "ask the coordinator; ask the network department about TLS inspection",
        )


def check_hub_certificate(line: HubAddress) -> Row:
    """Whether the hub is the one whose kit was installed here."""
    name = "hub's certificate"
    try:
        with spoken(line, tls(line)) as secure:
            content = secure.getpeercert(binary_form=True)
    except LineError as error:
        return _unreached(name, error)
    except ssl.SSLCertVerificationError as error:
        return _untrusted(name, line, error)
    except ssl.SSLError as error:
        return _unreached(name, LineError(f"TLS failed ({error.reason})", ""))
    assert content is not None  # a verified peer has shown one
    end = x509.load_der_x509_certificate(content).not_valid_after_utc
    days = (end - datetime.now(UTC)) / timedelta(days=1)
    found = f"of {line.name}, signed by this federation, good for {days:.0f} days"
    if days < DAYS_WARN:
        return warned(name, found, "tell the coordinator to renew it")
    return passed(name, found)


def _untrusted(name: str, line: HubAddress, error: ssl.SSLCertVerificationError) -> Row:
    code, said = error.verify_code, error.verify_message
    if code == 10:
        return failed(
            name,
            "it has expired, by this machine's clock",
            "see the clock's row; if that is right, tell the coordinator",
        )
    if code == 9:
        return failed(
            name,
            "it is not good yet, by this machine's clock",
            "see the clock's row, and set the clock (NTP)",
        )
    if code in (62, 64):
        return failed(
            name,
            f"it is signed by this federation, but not for {line.name}",
            "check the hub's address in client.toml; ask the coordinator",
        )
    if code in _UNTRUSTED:
        return failed(
            name,
            f"it is not signed by this federation ({said})",
            "another hub, or TLS inspection in between: never go on like this; ask "
            "the network department to spare this address, and the coordinator",
        )
    return failed(name, f"it is refused ({said})", "ask the coordinator")


def check_accepted(line: HubAddress) -> Row:
    """Whether the hub takes this site's certificate."""
    name = "accepted by the hub"
    try:
        status = _status(line)
    except LineError as error:
        return _unreached(name, error)
    if status == 400:
        return failed(
            name,
            "the hub refused this site's certificate",
            "see its own row; if it is good, it was revoked or is of another hub: ask "
            "the coordinator",
        )
    if status >= 500:
        return warned(
            name,
            f"the certificate is accepted, but the hub is not at work (HTTP {status})",
            "ask the coordinator whether `fedct server start` runs",
        )
    return passed(name, "the hub accepts this site's certificate")


def _status(line: HubAddress) -> int:
    """What the hub answers a site that shows its certificate; 400 if it hangs up.

    Raises:
        LineError: No answer came, or not from the hub.
    """
    try:
        return ask(line, tls(line, show=True), "/v1/fleet/")[0]
    except HungUpError:
        return 400
    except ssl.SSLCertVerificationError as error:
        raise LineError("the hub's certificate is not trusted", "") from error
    except ssl.SSLError as error:
        raise LineError(f"TLS failed ({error.reason})", "") from error


def check_clock(line: HubAddress) -> Row:
    """Whether this machine and the hub agree on the time."""
    name, verified = "clock", True
    try:
        before = datetime.now(UTC)
        try:
            _, headers = ask(line, tls(line, show=True), "/health")
        except (ssl.SSLError, LineError):
            verified = False
            before = datetime.now(UTC)
            _, headers = ask(line, tls(line, verify=False), "/health")
        after = datetime.now(UTC)
        theirs = parsedate_to_datetime(headers.get("date", ""))
    except LineError as error:
        return _unreached(name, error)
    except ssl.SSLError as error:
        return _unreached(name, LineError(f"TLS failed ({error.reason})", ""))
    except (ValueError, TypeError):
        return _unreached(name, LineError("the hub's answer has no date", ""))
    middle = before + (after - before) / 2
    # The header has whole seconds, cut off.
    ahead_s = (middle - theirs).total_seconds() - 0.5
    side = "ahead of" if ahead_s > 0 else "behind"
    found = f"{_long(abs(ahead_s))} {side} the hub's"
    if not verified:
        found += " (by the answer of a hub that has not proved who it is)"
    if abs(ahead_s) > SKEW_FAIL_S:
        return failed(name, found, "set this machine's clock (NTP), or ask the hub to")
    if abs(ahead_s) > SKEW_WARN_S:
        return warned(name, found, "let NTP set this machine's clock")
    return passed(name, found)


def _long(seconds: float) -> str:
    """A length of time for people."""
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _unreached(name: str, why: LineError) -> Row:
    fix = why.fix if isinstance(why, UntriedError) else "mend the rows above first"
    return warned(name, f"not checked: {why.found}", fix)
