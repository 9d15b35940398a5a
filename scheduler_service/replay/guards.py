"""Nets (b) and (c): I/O, clocks and randomness in process code raise DeterminismError at the line.

(b) is an audit hook: cheap, always on within a step. It sees files, sockets, processes. (c) is a profile function on
calls of C functions: it sees clocks, sleeps, randomness, threads and what is of the machine too, and costs some
microseconds a step, so it is on for live steps only. Library code that must do such things for its own sake (imports,
logging, tracebacks) may. What a call is given is not seen, so that calls are refused whose clock is only a default
(`time.strftime`), and the machine's time zone is not found in `datetime.fromtimestamp` and `astimezone`.
"""

from __future__ import annotations

import gc
import os
import sys
from _thread import get_ident
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final

from scheduler_service.authoring.errors import DeterminismError

_EFFECT: Final = "an effect: a @bb.function, or bb.shell"
_NOW: Final = "ctx.now()"
_RANDOM: Final = "ctx.random"
_RUN: Final = "ctx.run_id"
_TASK: Final = "asyncio.create_task, or a @bb.function for what computes or blocks"

_CWD: Final = "the cwd= of an effect"
_ZONED: Final = "a datetime with a time zone, and its timestamp()"

# Audited events, by name.
_AUDITED: Final[Mapping[str, str]] = {
    "open": _EFFECT, "os.listdir": _EFFECT, "os.scandir": _EFFECT, "os.mkdir": _EFFECT, "os.remove": _EFFECT,
    "os.rename": _EFFECT, "os.rmdir": _EFFECT, "os.system": "bb.shell", "os.exec": "bb.shell", "os.fork": "bb.shell",
    "os.forkpty": "bb.shell", "os.posix_spawn": "bb.shell", "os.spawn": "bb.shell", "subprocess.Popen": "bb.shell",
    "os.truncate": _EFFECT, "os.chmod": _EFFECT, "os.chown": _EFFECT, "os.link": _EFFECT, "os.symlink": _EFFECT,
    "os.putenv": "the env= of an effect", "os.unsetenv": "the env= of an effect", "os.kill": "handle.cancel()",
    "socket.__new__": _EFFECT, "socket.connect": _EFFECT, "socket.bind": _EFFECT, "socket.getaddrinfo": _EFFECT,
    "socket.gethostbyname": _EFFECT, "socket.sendto": _EFFECT, "sqlite3.connect": _EFFECT,
    "urllib.Request": _EFFECT, "http.client.connect": _EFFECT, "builtins.input": "bb.approval",
    "signal.pthread_kill": "handle.cancel()", "_thread.start_new_thread": _TASK,
    "time.sleep": "await asyncio.sleep()", "shutil.copyfile": _EFFECT, "shutil.rmtree": _EFFECT,
    "socket.gethostname": _EFFECT, "tempfile.mkstemp": _EFFECT, "tempfile.mkdtemp": _EFFECT, "glob.glob": _EFFECT,
}  # fmt: skip

# C functions, by name and then by the module or class they belong to.
_CALLED: Final[Mapping[str, Mapping[str, str]]] = {
    "time": {"time": _NOW}, "time_ns": {"time": _NOW}, "monotonic": {"time": _NOW}, "monotonic_ns": {"time": _NOW},
    "perf_counter": {"time": _NOW}, "perf_counter_ns": {"time": _NOW}, "process_time": {"time": _NOW},
    "process_time_ns": {"time": _NOW}, "thread_time": {"time": _NOW}, "thread_time_ns": {"time": _NOW},
    "clock_gettime": {"time": _NOW}, "clock_gettime_ns": {"time": _NOW}, "ctime": {"time": _NOW},
    "asctime": {"time": _NOW}, "strftime": {"time": "ctx.now().strftime()"}, "mktime": {"time": _ZONED},
    "localtime": {"time": _NOW}, "gmtime": {"time": _NOW}, "sleep": {"time": "await asyncio.sleep()"},
    "now": {"datetime": _NOW}, "utcnow": {"datetime": _NOW}, "today": {"date": _NOW, "datetime": _NOW},
    "random": {"random": _RANDOM}, "getrandbits": {"random": _RANDOM}, "seed": {"random": _RANDOM},
    "urandom": {"posix": "ctx.random or ctx.uuid4()", "nt": "ctx.random or ctx.uuid4()"},
    "getrandom": {"posix": _RANDOM}, "stat": {"posix": _EFFECT, "nt": _EFFECT}, "lstat": {"posix": _EFFECT},
    "access": {"posix": _EFFECT, "nt": _EFFECT}, "readlink": {"posix": _EFFECT, "nt": _EFFECT},
    "statvfs": {"posix": _EFFECT}, "getcwd": {"posix": _CWD, "nt": _CWD}, "getcwdb": {"posix": _CWD, "nt": _CWD},
    "getpid": {"posix": _RUN, "nt": _RUN}, "getppid": {"posix": _RUN, "nt": _RUN}, "uname": {"posix": _EFFECT},
    "getlogin": {"posix": _EFFECT, "nt": _EFFECT}, "cpu_count": {"posix": _EFFECT, "nt": _EFFECT},
    "sched_getaffinity": {"posix": _EFFECT}, "getloadavg": {"posix": _EFFECT},
    "times": {"posix": _NOW, "nt": _NOW},
    "generate_time_safe": {"_uuid": "ctx.uuid4()"},
    "signal": {"_signal": "ctx.signals"}, "setitimer": {"_signal": "asyncio.timeout"},
    "alarm": {"_signal": "asyncio.timeout"},
    "start_new_thread": {"_thread": _TASK}, "start_joinable_thread": {"_thread": _TASK},
    "input": {"builtins": "bb.approval"},
}  # fmt: skip

# Reading the environment calls no C function of its own: it is known by the code that does it.
_GETS, _ITERATES, _COUNTS = (
    getattr(type(os.environ), name).__code__ for name in ("__getitem__", "__iter__", "__len__")
)
_ENVIRONMENT: Final = "the input of the run, or a @bb.function"

# Callers that may, whatever they call on the way: they serve the interpreter or people's eyes, not the process.
_ALLOWED: Final = frozenset({
    "_frozen_importlib", "_frozen_importlib_external", "importlib", "zipimport", "logging", "warnings", "traceback",
    "linecache",
})  # fmt: skip
_active: dict[int, Guard] = {}


class Guard:
    """Marks a thread as being within a step of a process. One a loop; entered and left around every step."""

    __slots__ = ("_previous_profile", "_watch")

    def __init__(self) -> None:
        self._previous_profile: Any = None
        self._watch = False

    def enter(self, *, watch_calls: bool) -> None:
        """Switch the nets on for this thread."""
        _active[get_ident()] = self
        self._watch = watch_calls
        if watch_calls:
            self._previous_profile = sys.getprofile()
            sys.setprofile(_on_call)

    def leave(self) -> None:
        """Switch them off."""
        if self._watch:
            sys.setprofile(self._previous_profile)
        _active.pop(get_ident(), None)


def _on_audit(event: str, args: tuple[Any, ...]) -> None:
    if not _active:  # almost always: this hook hears of everything in the interpreter
        return
    instead = _AUDITED.get(event)
    if instead is None or get_ident() not in _active:
        return
    frame = sys._getframe(1)
    if _may(frame):
        return
    detail = f"({args[0]!r})" if args and isinstance(args[0], (str, bytes)) else "()"
    raise _refusal(f"{_SHOWN.get(event, event)}{detail}", instead, frame)


def _on_call(frame: FrameType, event: str, function: Any) -> None:
    if event != "c_call":
        code = frame.f_code
        if event == "call" and (code is _GETS or code is _ITERATES or code is _COUNTS) and not _may(frame):
            key = f"[{frame.f_locals['key']!r}]" if code is _GETS else ""
            raise _refusal(f"os.environ{key}", _ENVIRONMENT, _reader_of_environment(frame))
        return
    owners = _CALLED.get(function.__name__)
    if owners is None:
        return
    owner = "random" if _seeds_by_chance(frame, function) else _owner(function)
    instead = owners.get(owner)
    if instead is not None and not _may(frame):
        name = f"{owner}.{function.__name__}"
        raise _refusal(f"{_SHOWN.get(name) or f'{_SHOWN.get(owner, owner)}.{function.__name__}'}()", instead, frame)


def _reader_of_environment(frame: FrameType) -> FrameType:
    # Beyond what makes os.environ a mapping: the frame that says os.environ or os.getenv.
    while frame.f_back is not None and (
        frame.f_code.co_qualname.startswith("_Environ.") or frame.f_globals.get("__name__") == "collections.abc"
    ):
        frame = frame.f_back
    return frame


# What authors know under another name: modules and classes, and calls.
_SHOWN: Final[Mapping[str, str]] = {
    "posix": "os", "nt": "os", "_thread": "threading", "_signal": "signal", "_uuid": "uuid", "builtins.input": "input",
    "socket.__new__": "socket.socket", "_thread.start_new_thread": "threading.Thread.start",
    "_thread.start_joinable_thread": "threading.Thread.start",
}  # fmt: skip


# Library code by module, where the right call for its purpose is not that for what it calls.
_INSTEAD_OF: Final[Mapping[str, str]] = {
    "concurrent": _TASK, "secrets": "ctx.random or ctx.uuid4()", "tempfile": _EFFECT, "threading": _TASK,
    "uuid": "ctx.uuid4()",
}  # fmt: skip


def _refusal(call: str, instead: str, frame: FrameType) -> DeterminismError:
    """The error of a call. Library code in between is named too: it is what the line of the process says."""
    through: FrameType | None = None
    at: FrameType | None = frame
    while at is not None and _is_library(at):
        through, at = at, at.f_back
    if through is not None and at is not None:
        modules = [part for part in through.f_globals.get("__name__", "").split(".") if not part.startswith("_")]
        instead = _INSTEAD_OF.get(modules[0] if modules else "", instead)
        name = ".".join([*modules, through.f_code.co_qualname]).removesuffix(".__init__")
        name = name.replace("pathlib.PathBase.", "pathlib.Path.")  # as 3.13 has it
        name = name.replace("posixpath.", "os.path.").replace("ntpath.", "os.path.")
        if through.f_code.co_name != "__init__":
            name = name.replace("random.Random.", "random.")  # methods of the one behind random.random()
        if not call.startswith(f"{name}("):
            call = f"{name}(), which calls {call},"
    return DeterminismError(call, instead, _line_of(frame))


def _seeds_by_chance(frame: FrameType, function: Any) -> bool:
    # random.Random() without a seed takes one of the machine.
    known = getattr(sys.modules.get("random"), "Random", None)
    of_class = known is not None and frame.f_code is known.seed.__code__
    return function.__name__ == "seed" and of_class and frame.f_locals.get("a") is None


def _owner(function: Any) -> str:
    bound = getattr(function, "__self__", None)
    if isinstance(bound, type):  # a class method: datetime.now of a subclass is datetime's too
        return next((cls.__name__ for cls in bound.__mro__ if cls.__name__ in ("datetime", "date")), bound.__name__)
    hidden = getattr(sys.modules.get("random"), "_inst", None)
    if hidden is not None and bound is hidden:
        return "random"  # the generator behind random.random(); one that was seeded by ctx is welcome
    if bound is not None and type(bound).__name__ == "module":
        return str(bound.__name__)
    return ""


def _may(frame: FrameType | None) -> bool:
    """True when the call is not the process's own: made by an allowed caller, by asyncio, or by our context."""
    in_process = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        top = name.partition(".")[0]
        if name == _LOOP:
            return False
        if _collects_garbage(frame):
            return True
        if top in _ALLOWED:
            return True
        if not in_process:
            if name.startswith(_OURS) or (top == "asyncio" and not _drives_tasks(frame)):
                return True
            # asyncio and our own frames below a process frame merely await it (wait_for, the root task).
            in_process = top not in sys.stdlib_module_names
        frame = frame.f_back
    return False


def _collects_garbage(frame: FrameType) -> bool:
    # A collection may begin at any line of process code; what its callbacks do is not the process's doing.
    return any(frame.f_code is getattr(callback, "__code__", None) for callback in gc.callbacks)


_LOOP: Final = "scheduler_service.replay.loop"
_OURS: Final = ("scheduler_service.replay", "scheduler_service.authoring")


def _drives_tasks(frame: FrameType) -> bool:
    # asyncio's Handle._run stands below every process frame; it is no caller of what process code does.
    return frame.f_code.co_name == "_run" and frame.f_globals.get("__name__") == "asyncio.events"


def process_line(frame: FrameType | None = None) -> str:
    """`file:line` of the innermost frame of process code, for messages; of the caller, or from `frame` on."""
    return _line_of(frame or sys._getframe(1))


def asking_line() -> str:
    """`file:line` of the innermost frame of process code below the running step; empty when there is none."""
    frame: FrameType | None = sys._getframe(1)
    line = ""
    while frame is not None and not _runs_steps(frame):
        if not line and not _is_library(frame):
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return line if frame is not None else ""  # else the loop asks at the end of a run: nobody of the process is there


def waiting_line(coroutine: Any) -> str:
    """`file:line` of the innermost frame of process code that a suspended coroutine waits in; empty for none."""
    line = ""
    while coroutine is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(coroutine, f"{kind}_frame")), "")
        frame = getattr(coroutine, f"{kind}_frame", None)
        if frame is not None and not _is_library(frame):
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return line


def _runs_steps(frame: FrameType) -> bool:
    return frame.f_code.co_name == "run_ready" and frame.f_globals.get("__name__") == _LOOP


def _line_of(frame: FrameType | None) -> str:
    fallback = frame
    while frame is not None:
        if not _is_library(frame):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return f"{fallback.f_code.co_filename}:{fallback.f_lineno}" if fallback is not None else "?"


def _is_library(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.startswith(_OURS) or name.partition(".")[0] in sys.stdlib_module_names


sys.addaudithook(_on_audit)
