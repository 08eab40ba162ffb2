"""Each fault of the network shows in the row that is about it, and says what to do."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from base64 import b64encode
from datetime import timedelta

import pytest

from client.preflight_network import check_proxy, network_checks
from client.preflight_row import run_checks
from tests.client.tls_hub import Authority, hub, line, proxy, served

ROWS = (
    "proxy",
    "hub's name",
    "hub's port",
    "TLS 1.3",
    "hub's certificate",
    "accepted by the hub",
    "clock",
)
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy_here(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def table(checked) -> dict:
    """The rows by name."""
    rows = run_checks(network_checks(checked))
    assert tuple(row.name for row in rows) == ROWS
    for row in rows:
        assert (row.fix is None) == (row.verdict == "PASS"), row
    return {row.name: row for row in rows}


def verdicts(rows) -> str:
    """First letters: `PPPPFWP`."""
    return "".join(rows[name].verdict[0] for name in ROWS)


def test_a_sound_line_passes_in_every_row(authority):
    with hub(authority.file, authority.issue("localhost")) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPPPPP", rows
    assert "TLSv1.3" in rows["TLS 1.3"].found
    assert "good for 30 days" in rows["hub's certificate"].found
    assert "accepts this site's certificate" in rows["accepted by the hub"].found
    assert rows["clock"].found.startswith(("0 s ", "1 s "))


def test_a_hub_of_another_federation_fails_and_is_shown_no_certificate(
    authority, tmp_path
):
    other = Authority(tmp_path, name="other")
    with hub(other.file, other.issue("localhost")) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPPFWP", rows
    assert "not signed by this federation" in rows["hub's certificate"].found
    assert "never go on" in rows["hub's certificate"].fix
    assert "has not proved who it is" in rows["clock"].found


@pytest.mark.parametrize(
    ("days", "ago", "said"),
    [
        (1, timedelta(days=2), "has expired"),
        (30, -timedelta(days=2), "not good yet"),
    ],
)
def test_a_certificate_out_of_its_time_fails(authority, tmp_path, days, ago, said):
    certificate = authority.issue("localhost", days=days, ago=ago)
    with hub(authority.file, certificate) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPPFWP", rows
    assert said in rows["hub's certificate"].found
    assert "clock" in rows["hub's certificate"].fix


def test_a_certificate_for_another_name_fails(authority):
    with hub(
        authority.file, authority.issue("elsewhere", hosts=("hub.example",))
    ) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPPFWP", rows
    assert "not for localhost" in rows["hub's certificate"].found


def test_the_hub_is_known_by_its_name_and_not_by_where_it_is_reached(authority):
    with hub(authority.file, authority.issue("hub", hosts=("hub.example",))) as port:
        rows = table(line(authority, port, tls_name="hub.example"))
    assert verdicts(rows) == "PPPPPPP", rows
    assert rows["hub's certificate"].found.startswith("of hub.example, signed")


def test_a_certificate_that_ends_soon_is_a_warning(authority):
    with hub(authority.file, authority.issue("localhost", days=3)) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPPWPP"
    assert "good for 3 days" in rows["hub's certificate"].found


def test_a_line_that_knows_only_tls_1_2_fails(authority):
    certificate = authority.issue("localhost")
    with hub(authority.file, certificate, newest=ssl.TLSVersion.TLSv1_2) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPFWWW", rows
    assert "does not speak TLS 1.3" in rows["TLS 1.3"].found


def test_what_answers_without_tls_fails(authority):
    with served(lambda caller: caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as port:
        rows = table(line(authority, port))
    assert verdicts(rows) == "PPPFWWW", rows
    assert "does not speak TLS" in rows["TLS 1.3"].found


def test_a_refused_port_is_one_failure_and_not_five(authority):
    with served(lambda caller: None) as port:
        pass
    rows = table(line(authority, port))
    assert verdicts(rows) == "PPFWWWW", rows
    assert "refused the connection" in rows["hub's port"].found
    assert "not checked" in rows["clock"].found


def test_a_silent_hub_is_given_up_in_time(authority, monkeypatch):
    monkeypatch.setattr("client.preflight_line.STEP_S", 0.3)
    with served(lambda caller: time.sleep(1)) as port:
        start = time.monotonic()
        rows = table(line(authority, port))
    assert time.monotonic() - start < 4
    assert verdicts(rows) == "PPPWWWW", rows


def test_a_name_that_nobody_knows_fails_by_its_name(authority):
    rows = table(line(authority, 443, host="hub.invalid"))
    assert rows["hub's name"].verdict == rows["hub's port"].verdict == "FAIL"
    assert "hub.invalid (the hub) is not known" in rows["hub's name"].found


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("skew_s", "verdict"), [(30, "PASS"), (90, "WARN"), (3600, "FAIL")]
)
def test_a_clock_that_is_off_is_told_by_how_much(authority, skew_s, side, verdict):
    certificate = authority.issue("localhost")
    with hub(authority.file, certificate, skew_s=-side * skew_s) as port:
        row = table(line(authority, port))["clock"]
    assert row.verdict == verdict
    told, unit = row.found.split()[:2]
    assert abs(float(told) - skew_s) <= 1 if unit == "s" else told == "60.0"
    assert ("ahead of" if side > 0 else "behind") in row.found


def refused_certificates(authority, folder) -> dict:
    """Certificates that the hub must not take, with the key of each."""
    stranger = Authority(folder, name="stranger")
    expired = authority.issue(
        "gone", use="client", hosts=(), days=1, ago=timedelta(days=2)
    )
    return {
        "foreign": stranger.issue("north", use="client", hosts=()),
        "expired": expired,
        "of a server": authority.issue("south"),
    }


@pytest.mark.parametrize("kind", ["foreign", "expired", "of a server"])
def test_a_certificate_that_the_hub_hangs_up_on_fails(authority, tmp_path, kind):
    shown, key = refused_certificates(authority, tmp_path)[kind]
    with hub(authority.file, authority.issue("localhost")) as port:
        checked = line(authority, port, certificate_file=shown, key_file=key)
        row = table(checked)["accepted by the hub"]
    assert row.verdict == "FAIL", row
    assert "refused this site's certificate" in row.found


NGINX = """
daemon off; pid nginx.pid; error_log stderr; worker_processes 1; master_process off;
events {{}}
http {{
  access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {hub[0]}; ssl_certificate_key {hub[1]};
    ssl_client_certificate {ca}; ssl_verify_client on;
    location / {{ return 404; }}
  }}
}}
"""


@pytest.fixture
def nginx(authority, tmp_path):
    """A real nginx that asks for certificates; its port."""
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if command is None:
        pytest.skip("nginx is not installed (apt-get install nginx)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = authority.issue("localhost")
    text = NGINX.format(port=port, hub=own, ca=authority.file)
    (tmp_path / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        [command, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr"],
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            break
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(20)


def test_nginx_says_400_to_what_it_does_not_take(authority, nginx, tmp_path):
    rows = table(line(authority, nginx))
    assert verdicts(rows) == "PPPPPPP", rows
    for kind, (shown, key) in refused_certificates(authority, tmp_path).items():
        checked = line(authority, nginx, certificate_file=shown, key_file=key)
        rows = table(checked)
        assert verdicts(rows) == "PPPPPFP", (kind, rows)
        assert "refused this site's certificate" in rows["accepted by the hub"].found


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, "FAIL"), (502, "WARN"), (503, "WARN"), (405, "PASS")]
)
def test_what_the_hub_answers_is_understood(authority, status, verdict):
    with hub(authority.file, authority.issue("localhost"), status=status) as port:
        row = table(line(authority, port))["accepted by the hub"]
    assert row.verdict == verdict, row


def test_a_site_without_certificates_is_told_to_install_its_kit(authority, tmp_path):
    with hub(authority.file, authority.issue("localhost")) as port:
        rows = table(line(authority, port, ca_file=tmp_path / "none"))
    assert verdicts(rows) == "PPPPWWP", rows
    assert "own certificates can't be used" in rows["hub's certificate"].found


# --- proxies ------------------------------------------------------------------------


def test_all_of_it_works_through_a_proxy_that_wants_a_password(authority):
    login = b64encode(b"no@rth:p:w").decode()
    with (
        hub(authority.file, authority.issue("localhost")) as port,
        proxy(login=f"Basic {login}") as (door, heard),
    ):
        url = f"http://no%40rth:p%3Aw@127.0.0.1:{door}"
        rows = table(line(authority, port, proxy=url))
    assert verdicts(rows) == "PPPPPPP", rows
    assert all(f"CONNECT 127.0.0.1:{port} " in asked for asked in heard)
    assert f"through http://127.0.0.1:{door}" in rows["hub's port"].found
    assert "p:w" not in str(rows)
    assert "p%3Aw" not in str(rows)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (407, "wants a name and a password"),
        (403, "does not let this machine through"),
        (502, "does not reach the hub"),
    ],
)
def test_a_proxy_that_refuses_is_the_one_failure(authority, code, said):
    with proxy(answer=code) as (door, _):
        rows = table(line(authority, 443, proxy=f"http://127.0.0.1:{door}"))
    assert verdicts(rows) == "PPFWWWW", rows
    assert said in rows["hub's port"].found


def test_a_proxy_that_speaks_tls_is_left_to_the_echo(authority):
    rows = table(line(authority, 443, proxy="https://proxy.invalid:3129"))
    assert rows["hub's port"].verdict == "WARN"
    assert rows["accepted by the hub"].verdict == "WARN"
    assert rows["hub's port"].fix == rows["clock"].fix
    assert "echo's row" in rows["clock"].fix


def test_a_proxy_that_is_not_there_is_named(authority):
    with served(lambda caller: None) as port:
        pass
    rows = table(line(authority, 443, proxy=f"http://127.0.0.1:{port}"))
    assert rows["hub's port"].verdict == "FAIL"
    assert f"proxy http://127.0.0.1:{port} refused" in rows["hub's port"].found
    rows = table(line(authority, 443, proxy="http://proxy.invalid:3128"))
    assert "proxy.invalid (the proxy, which looks" in rows["hub's name"].found


LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("own", "variables", "verdict", "said"),
    [
        (None, {}, "PASS", "directly"),
        ("http://p:1", {}, "PASS", "http://p:1, from client.toml"),
        (
            None,
            {"HTTPS_PROXY": "http://u:secret@p:1", "NO_PROXY": LOOPBACK},
            "WARN",
            "http://p:1, from the environment alone",
        ),
        (
            "http://q:2",
            {"https_proxy": "http://p:1", "no_proxy": LOOPBACK},
            "WARN",
            "client.toml says http://q:2, the environment http://p:1",
        ),
        (
            "http://p:1",
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": LOOPBACK},
            "PASS",
            "from client.toml",
        ),
        (
            None,
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": f"{LOOPBACK},hub.example"},
            "PASS",
            "directly",
        ),
        (None, {"HTTPS_PROXY": "http://p:x"}, "FAIL", "no URL"),
    ],
)
def test_proxy_settings_are_compared(
    authority, monkeypatch, own, variables, verdict, said
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    row = check_proxy(line(authority, 443, host="hub.example", proxy=own))
    assert (row.verdict, said in row.found) == (verdict, True), row
    assert "secret" not in str(row)
