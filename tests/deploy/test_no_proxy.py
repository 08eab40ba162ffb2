"""What the programs of a hub and of a hospital are started with."""

import pytest

from deploy.start import _environment


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "hub.example, .intra"}, "hub.example,.intra,127.0.0.1,localhost"),
        ({"no_proxy": "a", "NO_PROXY": "b,localhost"}, "a,b,localhost,127.0.0.1,::1"),
    ],
)
def test_no_proxy_is_asked_for_loopback_nor_for_what_the_machine_spares(
    monkeypatch, given, spared
):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = _environment()
    assert found["NO_PROXY"] == found["no_proxy"]
    assert found["NO_PROXY"].startswith(spared)
    assert {"127.0.0.1", "localhost", "::1"} <= set(found["NO_PROXY"].split(","))
