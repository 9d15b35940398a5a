"""Fakes: which one answers an effect, how it is called, and the values that say more than a result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from scheduler_service.authoring.definitions import FunctionDefinition, functions
from scheduler_service.replay.events import Command

_KINDS: Final = ("shell", "function", "agent", "external", "run", "timer")
_SHOWN_MAX: Final = 200


class NoFake(LookupError):
    """An effect was asked for that the test has no fake for."""


class FakeMisused(TypeError):
    """A fake cannot be called with what its effect gets, or gives what such an effect cannot give."""


class _Never:
    def __repr__(self) -> str:
        return "bb.testing.NEVER"


#: The fake of an effect that does not end by itself.
NEVER: Final = _Never()


@dataclass(frozen=True, slots=True)
class After:
    """See `after`."""

    seconds: float
    fake: Any


@dataclass(frozen=True, slots=True)
class Result:
    """See `result`."""

    value: Any


def after(seconds: float, fake: Any = None) -> After:
    """The same fake, that many seconds of virtual time later. A fake may also return it: its value, later."""
    if seconds < 0:
        raise ValueError(f"after({seconds!r}): seconds from 0")
    return After(seconds, fake)


def result(value: Any) -> Result:
    """What an async generator yields as its result (it cannot return one); everything else it yields is progress."""
    return Result(value)


@dataclass(frozen=True, slots=True)
class Asked:
    """An effect that was asked for, as fakes see it. `kind` is its work field, or `approval`."""

    key: str
    effect_id: str
    spec: Mapping[str, Any]
    kind: str
    work: Mapping[str, Any]
    line: str

    @staticmethod
    def by(command: Command) -> Asked:
        """The effect that a command asks for."""
        spec = command.data["spec"]
        kind = next(kind for kind in _KINDS if kind in spec)
        work = spec[kind]
        # An approval is external work with choices; the proto has no kind of its own for it.
        shown = "approval" if kind == "external" and "choices" in work else kind
        return Asked(command.effect_key, command.effect_id, spec, shown, work, command.asked_at)

    @property
    def name(self) -> str:
        """Its name for people: of the function, the command, the label."""
        return str(self.spec["name"])

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """What a fake is called with."""
        match self.kind:
            case "function":
                args, kwargs = list(self.work.get("args", ())), dict(self.work.get("kwargs", {}))
                definition = functions().get(self.work["function"])
                return (args, kwargs) if definition is None else definition.decode_arguments(args, kwargs)
            case "shell":
                return [self.work.get("command_line") or list(self.work["argv"])], {}
            case "run":
                return [], dict(self.work.get("input", {}))
            case "timer":
                return [], {}
            case _:
                return [self.work["prompt"]], {}

    def names(self) -> list[str]:
        """The names that a fake of it may have, most telling first; the first is its key."""
        match self.kind:
            case "function" | "run":
                own = [self.name, self.name.rpartition(".")[2], self.kind]
            case "agent":
                own = [self.name, str(self.work["harness"]), self.kind]
            case "approval":
                own = [self.name, self.kind, "external"]
            case _:
                own = [self.name, self.kind]
        return list(dict.fromkeys([self.key, *own]))

    def __str__(self) -> str:
        args, kwargs = self.arguments()
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        shown = f"{given[:_SHOWN_MAX]}..." if len(given) > _SHOWN_MAX else given
        name = self.name if self.kind in ("function", "run") else f"{self.kind} {self.name}"
        return f"{self.key}: {name}({shown})"


class Fakes:
    """The fakes of a test."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._patterns = [name for name in given if set(name) & set("*?")]

    def find(self, asked: Asked) -> Any:
        """The fake of an effect. Raises NoFake."""
        key, *names = asked.names()
        patterns = (pattern for pattern in self._patterns if fnmatchcase(key, pattern))
        for name in (key, *patterns, *names):
            if name in self._given:
                return self._given[name]
        raise NoFake(self._missing(asked, names))

    def __contains__(self, asked: Asked) -> bool:
        try:
            self.find(asked)
        except NoFake:
            return False
        return True

    def _missing(self, asked: Asked, names: list[str]) -> str:
        where = f" at {asked.line}" if asked.line else ""
        known = ", ".join(map(repr, self._given)) or "none at all"
        name = names[1] if asked.kind in ("function", "run") and len(names) > 1 else names[0]
        return (
            f"no fake for the effect asked for{where}:\n  {asked}\nGive run(...) one by any of its names, such as\n"
            f"  effects={{{name!r}: {_example(asked)}}}\nNames that would do: "
            f"{', '.join(map(repr, [asked.key, *names]))}; there are: {known}"
        )


def _example(asked: Asked) -> str:
    match asked.kind:
        case "shell":
            return "0"
        case "approval":
            return repr(next(iter(asked.work["choices"]), "yes"))
        case "function" | "run":
            args, kwargs = asked.arguments()
            return f"lambda {'*args, ' * bool(args)}{'**given' * bool(kwargs)}".rstrip(" ,") + ": None"
        case _:
            return "lambda prompt: 'an answer'"


def call(fake: Any, asked: Asked) -> Any:
    """What a fake gives; a fake that is no callable is the value itself. Raises FakeMisused, and what it raises."""
    target = fake.fn if isinstance(fake, FunctionDefinition) else fake
    if not callable(target):
        return target
    args, kwargs = asked.arguments()
    try:
        inspect.signature(target).bind(*args, **kwargs)
    except TypeError as error:
        raise FakeMisused(f"the fake {target!r} cannot be called for {asked}: {error}") from None
    except ValueError:  # a callable of C without a signature: the call itself will say
        pass
    return target(*args, **kwargs)
