"""Options and plugins only; the fixtures live in `tests/support`."""

import os
import signal

# Before anything imports gRPC: its fork handlers hang the children of an asyncio program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell that starts the suite with `&` has it ignore Ctrl-C, and every child of it too; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.postgres"]
