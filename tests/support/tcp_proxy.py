"""A TCP proxy that is a bad network: latency, cut connections, black holes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_CHUNK = 65_536


@dataclass(eq=False)
class TcpProxy:
    """Forwards connections to a target. `address` is where to dial."""

    target: str
    address: str = ""
    #: Delay of every chunk, each way, in seconds.
    latency_s: float = 0.0
    #: Connections accepted so far.
    connections: int = 0
    #: Bytes that went through, both ways.
    forwarded: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens."""
        self._open.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> None:
        """Resets every connection; new ones are accepted."""
        for writer in list(self._writers):
            writer.transport.abort()

    def black_hole(self) -> None:
        """From now on nothing goes through, and nobody is told."""
        self._open.clear()

    def heal(self) -> None:
        """Ends a black hole: what waited goes through."""
        self._open.set()

    async def stop(self) -> None:
        """Ends everything."""
        self._open.set()
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self.target.rpartition(":")
        try:
            there, away = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, away}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, away), self._pump(there, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self._open.wait()
                writer.write(chunk)
                self.forwarded += len(chunk)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def tcp_proxy(target: str) -> AsyncIterator[TcpProxy]:
    """A listening proxy."""
    proxy = TcpProxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
