"""Exit codes: the contract of scripts with the command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command says to the shell. Kept stable; new meanings get new numbers."""

    OK = 0
    FAILED = 1
    """The run or effect failed; also the code of a service or demo that ended badly."""
    USAGE = 2
    """The command was used wrongly, or named something that does not exist or does not fit."""
    PARKED = 3
    """The run is parked: an error in process code, or halted."""
    CANCELLED = 4
    TIMED_OUT = 5
    """--timeout passed; what was waited for goes on."""
    UNREACHABLE = 6
    """The service does not answer."""
    NOT_STARTED = 127
    """The child of `exec` could not be started, as shells number it."""
    INTERRUPTED = 130
    """Ctrl-C, as shells number it; a run that was watched goes on."""
