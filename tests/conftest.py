"""Options and plugins only; the fixtures live in `tests/support`."""

import os

# Before anything imports gRPC: its fork handlers hang the children of an asyncio program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

pytest_plugins = ["tests.support.postgres"]
