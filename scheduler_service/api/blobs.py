"""ReadBlob: the content of a value that was too large to stand in the journal."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.run_requests import RunRef
from scheduler_service.api.runs import Runs
from scheduler_service.errors import BlobNotFound, BlobOffsetAhead
from scheduler_service.journal.client_reads import ClientReads

#: Bytes that are read from the database at a time.
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BlobQuery:
    """What is wanted of a blob."""

    run: RunRef
    digest: str
    offset: int


def blob_query(request: pb.ReadBlobRequest) -> BlobQuery:
    """Parses ReadBlob."""
    with checked() as check:
        digest = request.digest.lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            check.refuse("digest", "must be a SHA-256 in hex: 64 of 0-9 and a-f")
        return BlobQuery(
            run=RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id)),
            digest=digest,
            offset=check.not_negative("offset", request.offset),
        )


class Blobs:
    """What clients read of blobs."""

    def __init__(self, reads: ClientReads, runs: Runs) -> None:
        self._reads = reads
        self._runs = runs

    async def stream(self, query: BlobQuery) -> AsyncIterator[pb.ReadBlobResponse]:
        """The content from the offset to its end; nothing when the offset is the end."""
        await self._runs.read(query.run, full=False)
        size = await self._reads.blob_size(query.run.run_id, query.digest)
        if size is None:
            raise BlobNotFound(query.run.run_id, query.digest)
        if query.offset > size:
            raise BlobOffsetAhead(query.digest, query.offset, size)
        position = query.offset
        while position < size:
            piece = await self._reads.blob_piece(query.run.run_id, query.digest, position, _PIECE_BYTES)
            if not piece:  # retention took the run away meanwhile
                raise BlobNotFound(query.run.run_id, query.digest)
            for start in range(0, len(piece), limits.OUTPUT_CHUNK_BYTES_MAX):
                data = piece[start : start + limits.OUTPUT_CHUNK_BYTES_MAX]
                yield pb.ReadBlobResponse(offset=position + start, data=data)
            position += len(piece)
