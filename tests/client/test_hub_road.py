"""The road to the hub, directly and through proxies, to a real nginx."""

import contextlib
import hashlib
import ssl
from types import SimpleNamespace

import httpx
import pytest

from client.hub_road import HubAddress, hub_client
from tests.federation.chain import (
    CHUNK,
    ECHO,
    HUB_NAME,
    Federation,
    echo,
    free_port,
    needs_nginx,
    running,
)
from tests.federation.connect_proxy import connect_proxy
from tests.federation.pki import Authority

pytestmark = needs_nginx
USER = "ward%20a:p%40ss%3Aword"
PASSWORD = "ward a:p@ss:word"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The hub's nginx, and behind it something like a SuperLink."""
    federation = Federation(tmp_path_factory.mktemp("federation"), free_port())
    with (
        echo(federation.loopback, federation.superlink_port) as superlink,
        running(federation.hub),
    ):
        yield SimpleNamespace(f=federation, superlink=superlink)


@pytest.fixture(autouse=True)
def _no_proxy_here(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def post(address: HubAddress, content: bytes = b"x") -> httpx.Response:
    with hub_client(address, 10.0) as client:
        return client.post(address.url + ECHO, content=content)


def test_the_hub_is_known_by_its_name_wherever_it_is_reached(chain):
    for host in ("127.0.0.1", "localhost"):
        assert post(chain.f.address(host=host)).status_code == 200
    with pytest.raises(httpx.ConnectError, match="mismatch"):
        post(chain.f.address(tls_name=None))
    assert HubAddress("::1", 8443, *3 * [chain.f.root]).url == "https://[::1]:8443"


def test_a_site_talks_to_nobody_but_the_hub(chain, tmp_path):
    """Neither to a foreign authority's, nor to another name, nor to a peer."""
    foreign = Authority(tmp_path).issue("hub", hosts=[HUB_NAME])
    other = chain.f.authority.issue("hub", hosts=["other.example"])
    peer = chain.f.authority.issue(HUB_NAME)
    for pair in (foreign, other, peer):
        with echo(pair) as impostor:
            port = impostor.server_address[1]
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                post(chain.f.address(port=port))
            assert impostor.seen == []


def tunnel_twice(chain, proxy, url):
    """Through the proxy, and again after all its tunnels broke; it reads nothing."""
    address = chain.f.address(proxy=url)
    want = hashlib.sha256(CHUNK).hexdigest()
    with hub_client(address, 10.0) as client:
        for _ in range(3):
            up = client.post(address.url + ECHO, content=CHUNK)
            assert up.json()["sha256"] == want
            assert client.post(address.url + "/v1/fleet/pull-object").content == CHUNK
        assert proxy.asked == [("CONNECT", f"127.0.0.1:{chain.f.hub.port}")]
        proxy.cut()
        with contextlib.suppress(httpx.TransportError):  # the line that was cut
            client.post(address.url + ECHO, content=b"x")
        assert client.post(address.url + ECHO, content=b"x").status_code == 200
        assert len(proxy.asked) == 2
    assert CHUNK[:64] not in proxy.carried
    assert ECHO.encode() not in proxy.carried


def test_the_hub_is_reached_through_a_proxy_that_wants_a_password(chain):
    hub = f"127.0.0.1:{chain.f.hub.port}"
    with connect_proxy(password=PASSWORD, allowed=[hub]) as proxy:
        tunnel_twice(chain, proxy, f"http://{USER}@127.0.0.1:{proxy.port}")


def test_the_hub_is_reached_through_a_proxy_that_speaks_tls_itself(
    chain, tmp_path, monkeypatch
):
    """It is judged by the machine's own authorities, the hub by the federation's."""
    hospital = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*hospital.issue("proxy", hosts=["localhost"]).files)
    with connect_proxy(password=PASSWORD, tls=context) as proxy:
        url = f"https://{USER}@localhost:{proxy.port}"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            post(chain.f.address(proxy=url))
        assert proxy.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(hospital.certificate))
        tunnel_twice(chain, proxy, url)


@pytest.mark.parametrize(
    ("how", "code"), [({"password": "ward a:other"}, 407), ({"allowed": ()}, 403)]
)
def test_a_proxy_that_refuses_is_told_from_a_hub_that_does(chain, how, code):
    with connect_proxy(**how) as proxy:
        url = f"http://{USER}@127.0.0.1:{proxy.port}"
        with pytest.raises(httpx.ProxyError, match=str(code)) as refused:
            post(chain.f.address(proxy=url))
    assert "p@ss" not in str(refused.value)
    assert "p%40ss" not in str(refused.value)


def test_the_environment_s_proxy_is_taken_where_the_settings_name_none(
    chain, monkeypatch
):
    with connect_proxy() as proxy, connect_proxy() as other:
        url = f"http://127.0.0.1:{proxy.port}"
        monkeypatch.setenv("HTTPS_PROXY", url)
        assert post(chain.f.address()).status_code == 200
        assert len(proxy.asked) == 1
        own = f"http://127.0.0.1:{other.port}"
        assert post(chain.f.address(proxy=own)).status_code == 200
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
        assert post(chain.f.address()).status_code == 200
        assert post(chain.f.address(proxy=own)).status_code == 200
        assert (len(proxy.asked), len(other.asked)) == (1, 2)
