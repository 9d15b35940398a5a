"""Addresses of several schedulers, as gRPC takes them: it connects to one that answers, to another when that goes."""

from __future__ import annotations

import ipaddress
import random
import socket
from typing import Final

from scheduler_service.cli.errors import UsageProblem

_SCHEMES: Final = ("dns:///", "dns:", "ipv4:", "ipv6:")
_REMEDY: Final = "give HOST:PORT, or several separated by commas"


def dial_target(address: str) -> str:
    """What gRPC dials. One address is left to it; of several, names are resolved here, and all come in random order.

    Raises UsageProblem.
    """
    items = [item.strip() for item in address.split(",") if item.strip()]
    if len(items) < 2:
        return items[0] if items else address
    found = list(dict.fromkeys(one for item in items for one in _resolve(item)))
    if not found:
        raise UsageProblem(f"none of {address} resolves", "check the names, and the resolver")
    random.shuffle(found)
    if all(host.version == 4 for host, _ in found):
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)
    return "ipv6:" + ",".join(f"[{_as_v6(host)}]:{port}" for host, port in found)


_Host = ipaddress.IPv4Address | ipaddress.IPv6Address


def _resolve(item: str) -> list[tuple[_Host, int]]:
    scheme = next((scheme for scheme in _SCHEMES if item.startswith(scheme)), "")
    host, _, port = item.removeprefix(scheme).rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UsageProblem(f"{item!r} is not HOST:PORT", _REMEDY)
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # the others may do
    return [(ipaddress.ip_address(sockaddr[0]), int(port)) for *_, sockaddr in found]


def _as_v6(host: _Host) -> str:
    return str(host) if host.version == 6 else f"::ffff:{host}"
