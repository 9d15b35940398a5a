"""Processes and functions by name: the decorators that define them and the registries that find them.

Importing a module registers what it defines; the scheduler loads process modules, executors load function modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from scheduler_service.authoring.binding import Callee
from scheduler_service.authoring.context import Context
from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.effects import Effect, function_effect, run_effect
from scheduler_service.authoring.values import InvalidValue, encode

P = ParamSpec("P")
R = TypeVar("R")


class FunctionDefinition(Generic[P, R]):
    """A function that executors run. Calling it builds an Effect and runs nothing; `.fn` is the function itself."""

    def __init__(self, name: str, fn: Callable[P, R | Awaitable[R]]) -> None:
        self.name = name
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(fn)
        self._callee = Callee(fn)

    @property
    def signature(self) -> inspect.Signature:
        """Its parameters."""
        return self._callee.signature

    @property
    def hints(self) -> Mapping[str, Any]:
        """Its resolved type hints by parameter name, and `return`. Raises NameError for one that names nothing."""
        return self._callee.hints

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Effect[R]:
        """The effect of this call. Raises TypeError or InvalidValue at the line when the arguments do not fit."""
        self._callee.signature.bind(*args, **kwargs)
        return cast("Effect[R]", function_effect(self.name, args, kwargs, self._callee.returns))

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Stored arguments read by the annotations. Raises TypeError or InvalidValue when they do not fit."""
        return self._callee.decode_call(args, kwargs)

    def encode_result(self, value: Any) -> Any:
        """The returned value as canonical JSON. Raises InvalidValue naming the paths of what cannot be stored, and of
        what the annotation of the result does not say: processes read it by that."""
        encoded = encode(value, "result")
        decode(encoded, self._callee.returns, "result")
        return encoded

    def __repr__(self) -> str:
        return f"<function {self.name}>"


class ProcessDefinition(Generic[P, R]):
    """A process: an async function of a Context, run durably under `name`. `code_version` is recorded with its runs."""

    def __init__(self, name: str, fn: Callable[Concatenate[Context, P], Awaitable[R]], code_version: str = "") -> None:
        self.name = name
        self.fn = fn
        self.code_version = code_version
        self._callee = Callee(fn, skip=1)

    @property
    def signature(self) -> inspect.Signature:
        """Its parameters, without the context."""
        return self._callee.signature

    @property
    def hints(self) -> Mapping[str, Any]:
        """Its resolved type hints by parameter name, and `return`. Raises NameError for one that names nothing."""
        return self._callee.hints

    @property
    def returns(self) -> Any:
        """Annotation of its result; Any when there is none."""
        return self._callee.returns

    def __call__(self, ctx: Context, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Call it as a plain part of another process: same run, same journal. For a child run use `bb.run`."""
        return self.fn(ctx, *args, **kwargs)

    def bind_input(self, stored: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments from a JSON input object. Raises InvalidValue with the path of the field that is wrong."""
        return self._callee.bind_object(stored)

    def input_object(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON input object of a call. Raises TypeError or InvalidValue."""
        return self._callee.input_object(args, kwargs)

    def __repr__(self) -> str:
        return f"<process {self.name}>"


AnyFunction = FunctionDefinition[Any, Any]
AnyProcess = ProcessDefinition[Any, Any]

_FUNCTIONS: dict[str, AnyFunction] = {}
_PROCESSES: dict[str, AnyProcess] = {}


def functions() -> Mapping[str, AnyFunction]:
    """The functions defined so far, by name. A live view."""
    return MappingProxyType(_FUNCTIONS)


def processes() -> Mapping[str, AnyProcess]:
    """The processes defined so far, by name. A live view."""
    return MappingProxyType(_PROCESSES)


def check_annotations(definitions: Mapping[str, AnyFunction | AnyProcess]) -> None:
    """Resolve all annotations now, not with the first call. Raises TypeError with what cannot be resolved."""
    for definition in definitions.values():
        try:
            _resolved = definition.hints
        except Exception as error:
            raise TypeError(f"annotations of {definition!r}: {error}") from error


def _register(registry: dict[str, Any], definition: AnyFunction | AnyProcess) -> None:
    known = registry.get(definition.name)
    if known is not None and _origin(known.fn) != _origin(definition.fn):
        raise ValueError(f"{definition!r} is defined twice: {_origin(known.fn)} and {_origin(definition.fn)}")
    registry[definition.name] = definition  # the same place again is a reload


def _origin(fn: Callable[..., Any]) -> str:
    return f"{fn.__module__}.{fn.__qualname__}"


class _ProcessDecorator(Protocol):
    def __call__(self, fn: Callable[Concatenate[Any, P], Awaitable[R]]) -> ProcessDefinition[P, R]: ...


@overload
def process(target: Callable[Concatenate[Any, P], Awaitable[R]], /) -> ProcessDefinition[P, R]: ...
@overload
def process(target: str | None = None, /, *, version: str = "") -> _ProcessDecorator: ...
def process(target: Any = None, /, *, version: str = "") -> Any:
    """Define a process: `@bb.process("name")`, or `@bb.process` for the name `module.function`.

    `version` is the version of its code, recorded with its runs. Raises TypeError when it is not an async function of
    a context, ValueError when the name is taken.
    """

    def define(fn: Callable[..., Awaitable[Any]]) -> AnyProcess:
        if not inspect.iscoroutinefunction(fn) or not inspect.signature(fn).parameters:
            raise TypeError(f"process {fn!r}: expected `async def name(ctx, ...)`")
        definition: AnyProcess = ProcessDefinition(
            target if isinstance(target, str) else _default_name(fn), fn, version
        )
        _register(_PROCESSES, definition)
        return definition

    return define(target) if callable(target) else define


class _FunctionDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]]) -> FunctionDefinition[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> FunctionDefinition[P, R]: ...


@overload
def function(target: str, /, *args: Any, **kwargs: Any) -> Effect[Any]: ...
@overload
def function(target: Callable[P, Awaitable[R]], /) -> FunctionDefinition[P, R]: ...
@overload
def function(target: Callable[P, R], /) -> FunctionDefinition[P, R]: ...
@overload
def function(*, name: str) -> _FunctionDecorator: ...
def function(target: Any = None, /, *args: Any, **kwargs: Any) -> Any:
    """Define a function that executors run, or build the effect of calling one by name.

    `@bb.function` (name `module.function`), `@bb.function(name="lint")`, or `bb.function("notify.remind", who)`, which
    is checked by the executor only. Raises ValueError when the name is taken.
    """
    if isinstance(target, str):
        return function_effect(target, args, kwargs, _known_returns(target))

    def define(fn: Callable[..., Any]) -> AnyFunction:
        definition: AnyFunction = FunctionDefinition(kwargs.get("name") or _default_name(fn), fn)
        _register(_FUNCTIONS, definition)
        return definition

    return define(target) if callable(target) else define


def _default_name(fn: Callable[..., Any]) -> str:
    return f"{fn.__module__}.{fn.__name__}"


def _known_returns(name: str) -> Any:
    definition = _FUNCTIONS.get(name)
    return Any if definition is None else definition.hints.get("return", Any)


@overload
def run(process: ProcessDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Effect[R]: ...
@overload
def run(process: str, /, **kwargs: Any) -> Effect[Any]: ...
def run(process: Any, /, *args: Any, **kwargs: Any) -> Effect[Any]:
    """A child run: of a process given by its definition (checked at the line) or by name (arguments by keyword)."""
    if isinstance(process, ProcessDefinition):
        return run_effect(process.name, process.input_object(args, kwargs), process.returns)
    if args:
        raise InvalidValue("input", f"run({process!r}) by name takes its input by keyword")
    return run_effect(process, encode(kwargs, "input"))
