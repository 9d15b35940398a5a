"""Where scheduler replicas may be: what an operator named, and the addresses behind the names."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 7233
#: Addresses that one name may stand for; what is over is left out.
ADDRESSES_MAX: Final = 100
#: A resolver that does not answer in time is one that does not answer.
RESOLVE_SECONDS: Final = 5.0

_OURS: Final = ("dns:///", "dns:", "ipv4:", "ipv6:")


class TargetError(ValueError):
    """A target is malformed; the message says how one is written."""


@dataclass(frozen=True, slots=True)
class Address:
    """One address that gRPC dials; `authority` is the name that it was found under, as proxies want to see it."""

    dial: str
    authority: str = ""


@dataclass(slots=True)
class Target:
    """One item of the list. Without a host it is of a scheme that gRPC resolves by itself (unix:, xds:///, ...)."""

    text: str
    host: str = ""
    port: int = 0
    _known: Sequence[Address] = field(default_factory=list)

    async def addresses(self) -> Sequence[Address]:
        """What it stands for now. When the resolver fails, what it said last: a resolver that is down loses nobody."""
        if not self.host:
            return [Address(self.text)]
        if (literal := _literal(self.host, self.port)) is not None:
            return [literal]
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                self._known = await self._resolve()
        except (OSError, UnicodeError, TimeoutError) as error:  # UnicodeError: no name of DNS could be written so
            log.warning("%s does not resolve: %s", self.host, str(error) or "no answer")
        return self._known

    async def _resolve(self) -> Sequence[Address]:
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        hosts = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
        authority = f"{self.host}:{self.port}"
        return [Address(_dial(host, self.port), authority) for host in list(hosts)[:ADDRESSES_MAX]]


def parse_targets(text: str) -> list[Target]:
    """The targets of `a:1,b:2`: hosts, addresses, `dns:///` names, or whatever else gRPC knows. Raises TargetError."""
    items = [item.strip() for item in text.split(",")]
    targets = [_parse(item) for item in items if item]
    if not targets:
        raise TargetError("names no scheduler: give HOST:PORT, or several separated by commas")
    return targets


def _parse(item: str) -> Target:
    scheme = next((scheme for scheme in _OURS if item.startswith(scheme)), "")
    rest = item.removeprefix(scheme)
    if "/" in rest or rest.startswith("unix"):  # a scheme that is gRPC's business, or dns with a server of its own
        return Target(item)
    host, colon, port = rest.rpartition(":")
    if rest.endswith("]") or not colon:
        host, port = rest, str(DEFAULT_PORT)
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in host and bare == host) or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise TargetError(
            f"{item!r} is not HOST:PORT; an IPv6 address stands in brackets, such as [::1]:{DEFAULT_PORT}"
        )
    return Target(item, bare, int(port))


def _literal(host: str, port: int) -> Address | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return Address(_dial(host, port))


def _dial(host: str, port: int) -> str:
    return f"ipv6:[{quote(host, safe=':')}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
