"""Binding JSON to the signatures of processes and functions, and calls back to JSON."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scheduler_service.authoring.decoding import Unknown, decode
from scheduler_service.authoring.values import Problems, encode, normalise

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Callee:
    """A signature with resolved type hints. `skip` leading parameters (a process's ctx) are not part of the input."""

    def __init__(self, fn: Callable[..., Any], skip: int = 0) -> None:
        parameters = list(inspect.signature(fn).parameters.values())[skip:]
        self._fn = fn
        self._resolved: Mapping[str, Any] | None = None
        self.signature = inspect.Signature(parameters)

    @property
    def hints(self) -> Mapping[str, Any]:
        """Type hints by parameter name and `return`; resolved on first use, since they may name later definitions."""
        if self._resolved is None:
            self._resolved = typing.get_type_hints(self._fn, include_extras=True)
        return self._resolved

    @property
    def returns(self) -> Any:
        """Annotation of the result; Any when there is none."""
        return self.hints.get("return", Any)

    def input_object(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON input object of a call. Raises TypeError when the call does not fit, InvalidValue for its values."""
        bound = self.signature.bind(*args, **kwargs)
        given: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                given.update(value)
            else:
                given[name] = value
        encoded: dict[str, Any] = encode(given, "input")
        return encoded

    def bind_object(self, stored: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Read an input object by the annotations. Raises InvalidValue with the paths of all fields that are wrong."""
        given: dict[str, Any] = normalise(dict(stored))
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        found = Problems()
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= {key: found.read(self._read, name, given.pop(key), key) for key in list(given)}
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                items = enumerate(given.pop(name, []))
                args += [found.read(self._read, name, item, f"{name}[{n}]") for n, item in items]
            elif name not in given:
                if parameter.default is inspect.Parameter.empty:
                    found.add(f"input.{name}", "missing")
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                args.append(found.read(self._read, name, given.pop(name), name))
            else:
                kwargs[name] = found.read(self._read, name, given.pop(name), name)
        for name in given:
            found.add(f"input.{name}", f"unknown; expected {', '.join(self.signature.parameters) or 'nothing'}")
        found.tell()
        return self._fold_positional(args, kwargs)

    def decode_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Read the stored arguments of a function call by the annotations, for the executor that runs it."""
        bound, found = self.signature.bind(*args, **kwargs), Problems()
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                items = enumerate(value)
                bound.arguments[name] = tuple(found.read(self._read, name, item, f"{name}[{n}]") for n, item in items)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {k: found.read(self._read, name, item, k) for k, item in value.items()}
            else:
                bound.arguments[name] = found.read(self._read, name, value, name)
        found.tell()
        return list(bound.args), dict(bound.kwargs)

    def _read(self, name: str, value: Any, path: str) -> Any:
        # What is given to us says what is wanted: nothing of it is skipped.
        return decode(normalise(value), self.hints.get(name, Any), f"input.{path}", unknown=Unknown.REFUSED)

    def _fold_positional(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        # With *args in the signature, what stands before it must be given by position too.
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in self.signature.parameters.values()):
            before = [name for name, p in self.signature.parameters.items() if p.kind in _POSITIONAL and name in kwargs]
            args = [kwargs.pop(name) for name in before] + args
        return args, kwargs
