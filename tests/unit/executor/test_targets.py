"""Where schedulers are: lists of hosts and addresses, names that stand for several, resolvers that fail."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from executor_service.settings import SettingsError, settings_from_env
from executor_service.targets import Address, TargetError, parse_targets


@pytest.mark.parametrize(
    ("text", "dials"),
    [
        ("127.0.0.1:7233", ["ipv4:127.0.0.1:7233"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]),
        (" 10.0.0.1:1 ,, 10.0.0.2 ", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:7233"]),
        ("[::1]:9,[fe80::1]", ["ipv6:[::1]:9", "ipv6:[fe80::1]:7233"]),
        ("ipv6:[::1]:9", ["ipv6:[::1]:9"]),
        ("unix:/run/b.sock", ["unix:/run/b.sock"]),
        ("dns://10.0.0.53/schedulers:7233", ["dns://10.0.0.53/schedulers:7233"]),
        ("xds:///schedulers", ["xds:///schedulers"]),
    ],
)
async def test_what_needs_no_resolver_is_dialled_as_it_stands(text: str, dials: list[str]) -> None:
    addresses = [address for target in parse_targets(text) for address in await target.addresses()]
    assert [address.dial for address in addresses] == dials


@pytest.mark.parametrize("text", ["", " , ", "host:", "host:x", ":7233", "host:0", "host:65536", "::1", "fe80::1:7233"])
def test_what_is_no_address_is_refused_and_the_setting_named(text: str) -> None:
    with pytest.raises(TargetError):
        parse_targets(text)
    if text:
        with pytest.raises(SettingsError, match="BACKBURNER_SCHEDULER"):
            settings_from_env({"DATABASE_URL": "db", "BACKBURNER_SCHEDULER": text})


class Resolver:
    """Stands for the system's. `answer` is the hosts that it gives; None: it fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Sequence[str] | None = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, _host: str, port: int, **_kind: Any) -> list[tuple[Any, ...]]:
        if self.answer is None:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in self.answer]


@pytest.mark.parametrize("text", ["schedulers.prod:7000", "dns:///schedulers.prod:7000", "dns:schedulers.prod:7000"])
async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    resolver = Resolver(monkeypatch)
    [target] = parse_targets(text)
    resolver.answer = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert await target.addresses() == [
        Address("ipv4:10.0.0.1:7000", "schedulers.prod:7000"),
        Address("ipv4:10.0.0.2:7000", "schedulers.prod:7000"),
    ]


async def test_a_name_is_resolved_each_time_and_kept_when_the_resolver_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    [target] = parse_targets("schedulers:7000")
    for answer, dials in (
        (None, []),
        (["10.0.0.1"], ["ipv4:10.0.0.1:7000"]),
        (["10.0.0.2"], ["ipv4:10.0.0.2:7000"]),
        (None, ["ipv4:10.0.0.2:7000"]),
    ):
        resolver.answer = answer
        assert [address.dial for address in await target.addresses()] == dials
