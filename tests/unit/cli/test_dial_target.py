"""What gRPC is given for the --address of several schedulers."""

import random
import socket

import pytest

from scheduler_service.cli.dial_target import dial_target
from scheduler_service.cli.errors import UsageProblem


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "shuffle", lambda found: None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "dns:///schedulers:1", "unix:/run/b.sock", "schedulers:1", ""])
def test_a_single_address_is_left_to_grpc(address: str) -> None:
    assert dial_target(address) == address


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("ipv4:127.0.0.1:1, 127.0.0.1:1,", "ipv4:127.0.0.1:1"),
        ("127.0.0.1:1,[::1]:2", "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"),
    ],
)
def test_several_are_one_list(address: str, dialled: str) -> None:
    assert dial_target(address) == dialled


def test_a_name_stands_for_all_its_addresses_and_one_that_does_not_resolve_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(host: str, port: int, **_kind: object) -> list[tuple[object, ...]]:
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{n}", port)) for n in (1, 2)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert dial_target("gone:1,dns:///schedulers:7") == "ipv4:10.0.0.1:7,10.0.0.2:7"
    with pytest.raises(UsageProblem, match="resolves"):
        dial_target("gone:1,gone:2")


@pytest.mark.parametrize("address", ["a:1,b", "a:1,b:x", "unix:/a:1,b:1", "a:1,xds:///b:1"])
def test_what_cannot_be_in_a_list_is_refused(address: str) -> None:
    with pytest.raises(UsageProblem, match="HOST:PORT"):
        dial_target(address)
