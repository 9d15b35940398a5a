"""What the model server plays: the turns of a conversation, what each costs, where it fails or falls silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .faults import Fault
from .fields import Fields, ScenarioError

__all__ = ["AUX", "Aside", "Bash", "Hang", "Scenario", "ScenarioError", "Tool", "Turn", "Usage", "Write"]

AUX: Final = -1
"""The turn of a request that offers no tools: titles and summaries, which CLIs ask for beside the conversation."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `cached` is part of `input`, and `reasoning` part of `output`."""

    input: int = 100
    cached: int = 40
    output: int = 20
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cached + other.cached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True)
class Bash:
    """A shell command, by whichever tool of the request runs one."""

    command: str


@dataclass(frozen=True)
class Write:
    """A file written whole, by whichever tool of the request does that."""

    path: str
    content: str


@dataclass(frozen=True)
class Tool:
    """A call of the tool of this name, with exactly these arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One answer: text, a call, or both. `stop` is "", "refusal" (declined) or "length" (cut by the output limit)."""

    text: str | None = None
    call: Bash | Write | Tool | None = None
    thinking: str | None = None
    usage: Usage | None = None
    stop: str = ""


@dataclass(frozen=True)
class Aside:
    """Turns of conversations whose question has these words in it: those of a helper that an agent starts."""

    asked: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Hang:
    """Silence on `on_turn` (None: on each) once `after` events are sent; 0 is before the headers.

    It lasts `seconds`, or until the server is closed or given another scenario; then the answer goes on, or, with
    `drop`, the connection is closed in the middle of it. `times` requests have it; None is all.
    """

    on_turn: int | None = 0
    after: int = 1
    seconds: float = 600
    drop: bool = False
    times: int | None = None


@dataclass(frozen=True)
class Scenario:
    """The turn that is played is the number of tool results since the last message of a user; past the end, the last.

    It is read from the request alone: retries, resumed sessions and parallel requests are answered alike. Of several
    faults or hangs, the first that fits and is not used up counts. `usage` is by turn too, its last one repeated.
    """

    turns: tuple[Turn, ...] = (Turn(text="Done."),)
    usage: tuple[Usage, ...] = (Usage(),)
    faults: tuple[Fault, ...] = ()
    hangs: tuple[Hang, ...] = ()
    asides: tuple[Aside, ...] = ()
    chunk_delay: float = 0.0
    aux_text: str = "Title"

    def turn(self, index: int, question: str = "") -> Turn:
        """What is answered at this turn, in the conversation about this question."""
        turns = next((aside.turns for aside in self.asides if aside.asked in question), self.turns)
        return Turn(text=self.aux_text) if index == AUX else turns[min(index, len(turns) - 1)]

    def usage_of(self, index: int, question: str = "") -> Usage:
        """What is charged for it. A request beside the conversation costs what its first turn does."""
        return self.turn(index, question).usage or self.usage[min(max(index, 0), len(self.usage) - 1)]

    @classmethod
    def of(cls, document: object) -> Scenario:
        """From JSON, as README shows it. Raises ScenarioError with the path of the field that is wrong."""
        fields = Fields(document, "scenario")
        found = cls(
            turns=tuple(_turn(turn) for turn in fields.inners("turns")) or cls.turns,
            usage=tuple(_usage(usage) for usage in fields.inners("usage")) or cls.usage,
            faults=tuple(_fault(fault) for fault in fields.inners("error")),
            hangs=tuple(_hang(hang) for hang in fields.inners("hang")),
            asides=tuple(_aside(aside) for aside in fields.inners("asides")),
            chunk_delay=fields.number("chunk_delay_s", 0.0),
            aux_text=fields.text("aux_text", "Title"),
        )
        fields.end()
        return found


def _turn(fields: Fields) -> Turn:
    usage = fields.inner("usage")
    turn = Turn(
        text=fields.text("text", None),
        call=_call(fields),
        thinking=fields.text("thinking", None),
        usage=None if usage is None else _usage(usage),
        stop=fields.one_of("stop", ("", "refusal", "length")),
    )
    fields.end()
    if turn.text is None and turn.call is None:
        raise ScenarioError(f"{fields.path}: say what is answered: text, bash, write or tool")
    return turn


def _aside(fields: Fields) -> Aside:
    asked, turns = fields.text("asked"), tuple(_turn(turn) for turn in fields.inners("turns"))
    if not asked or not turns:
        raise ScenarioError(f"{fields.path}: say what is asked, and the turns that answer it")
    return fields.all_of(Aside(asked, turns))


def _call(fields: Fields) -> Bash | Write | Tool | None:
    command, write, tool = fields.text("bash", None), fields.inner("write"), fields.inner("tool")
    if command is not None:
        return Bash(command)
    if write is not None:
        return write.all_of(Write(write.text("path"), write.text("content")))
    if tool is not None:
        return tool.all_of(Tool(tool.text("name"), tool.mapping("args")))
    return None


def _usage(fields: Fields) -> Usage:
    plain = Usage()
    return fields.all_of(
        Usage(
            fields.integer("input", plain.input),
            fields.integer("cached", plain.cached),
            fields.integer("output", plain.output),
            fields.integer("reasoning", plain.reasoning),
        )
    )


def _fault(fields: Fields) -> Fault:
    return fields.all_of(
        Fault(
            kind=fields.one_of("kind", ("", *Fault.KINDS)),
            status=fields.integer("status", 0),
            type=fields.text("type", ""),
            message=fields.text("message", ""),
            headers={name: str(value) for name, value in fields.mapping("headers").items()},
            retry_after=fields.number("retry_after", None),
            resets_at=fields.number("resets_at", None),
            on_turn=fields.whole("on_turn", 0),
            times=fields.whole("times", None),
        )
    )


def _hang(fields: Fields) -> Hang:
    return fields.all_of(
        Hang(
            on_turn=fields.whole("on_turn", 0),
            after=fields.integer("after", 1),
            seconds=fields.number("seconds", 600.0),
            drop=fields.flag("drop"),
            times=fields.whole("times", None),
        )
    )
