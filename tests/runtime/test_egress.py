from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.runtime.launchers.sandbox.egress import (
    GITHUB,
    Egress,
    Network,
    Target,
    Verdict,
    is_public,
    target,
    target_of,
)

MODEL = Target("models.example", 443)
LOCAL = ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "0", "::1", "::"]
PRIVATE = ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fd00::1", "fe80::1%eth0"]
OTHER = [
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "2002:808:808::",
    "2001::f7f7:f7f7",
    "::10.0.0.1",
    "64:ff9b:1::a00:1",
    "fec0::1",
    "224.0.0.1",
    "ff02::1",
    "168.63.129.16",
    "::ffff:168.63.129.16",
    "64:ff9b::a83f:8110",
    "metadata.google.internal",
    "x.local",
]


@pytest.mark.parametrize("host", [*LOCAL, *PRIVATE, *OTHER])
@pytest.mark.parametrize("network", list(Network))
def test_nothing_that_is_near_is_reached_unless_it_is_named(host: str, network: Network) -> None:
    assert Egress(network).decide(host, 443) is Verdict.REFUSED
    assert Egress(network, frozenset({Target(host.lower().rstrip("."), 443)})).decide(host, 443) is Verdict.NAMED


@pytest.mark.parametrize(
    ("network", "verdict"),
    [(Network.NONE, Verdict.REFUSED), (Network.OPEN, Verdict.PUBLIC), (Network.PROXY, Verdict.BY_PROXY)],
)
def test_all_else_is_as_the_network_says(network: Network, verdict: Verdict) -> None:
    egress = Egress(network).with_named([MODEL])
    assert egress.decide("models.example", 443) is Verdict.NAMED
    for host, port in (("models.example", 80), ("other.example", 443), ("8.8.8.8", 443), ("x.models.example", 443)):
        assert egress.decide(host, port) is verdict


def test_a_domain_covers_the_hosts_below_it_and_no_other() -> None:
    egress = Egress(Network.NONE, frozenset(target(text) for text in GITHUB))
    assert egress.decide("api.business.githubcopilot.com", 443) is Verdict.NAMED
    for host in ("githubcopilot.com", "evilgithubcopilot.com", "githubcopilot.com.evil.example"):
        assert egress.decide(host, 443) is Verdict.REFUSED


@given(st.ip_addresses())
def test_an_address_that_is_not_public_is_never_reached(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    verdict = Egress(Network.OPEN).decide(str(address), 443)
    assert verdict is (Verdict.PUBLIC if is_public(str(address)) else Verdict.REFUSED)
    if not address.is_global:
        assert verdict is Verdict.REFUSED


def test_where_a_url_leads() -> None:
    assert target_of("https://Models.example/v1") == ("models.example", 443)
    assert target_of("http://127.0.0.1:8000/v1") == ("127.0.0.1", 8000)
    assert target_of("http://[::1]/v1") == ("::1", 80)
    assert target("[::1]:80") == ("::1", 80)
    for text in ("no-port", ":80", "host:0", "host:70000", "host:x"):
        with pytest.raises(ValueError):
            target(text)
    with pytest.raises(ValueError):
        target_of("ftp://host/")
