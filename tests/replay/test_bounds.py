"""What process code writes has a bound: one past it raises at the line that writes it, live and on replay alike."""

from collections.abc import Callable
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.authoring import bounds
from scheduler_service.authoring.values import dumps
from scheduler_service.replay.failures import DETAILS_MAX
from scheduler_service.replay.harness import Driven, check_prefixes, drive, failed
from tests.replay.answers import by_key

FILE = "let an effect write it to a file and give the path"


def text(size: int) -> str:
    """So many bytes as JSON, in characters of two bytes as far as they go."""
    return "\u00e9" * ((size - 2) // 2) + "x" * (size % 2)


def run(body: Any, answer: Any = None) -> Driven:
    driven = drive(bb.ProcessDefinition("body", body), {}, answer or by_key())
    check_prefixes(driven)
    return driven


def obj(size: int) -> dict[str, str]:
    """An object of so many bytes as JSON."""
    return {"d": text(size - len('{"d":}'))}


SPEC_OVERHEAD = len(dumps({"name": "f", "function": {"function": "f", "args": [""]}, "background": True}))
#: What is written -> how, of which size; the bound; what the error names; what to do instead.
WRITTEN: list[tuple[Callable[[bb.Context, int], Any], bounds.Bound, str, str]] = [
    (lambda ctx, n: ctx.report(data=obj(n)), bounds.REPORT, "data of ctx.report", FILE),
    (lambda ctx, n: ctx.log.info("m", **obj(n)), bounds.LOG_FIELDS, "fields of ctx.log", FILE),
    (lambda ctx, n: bb.Fail("no", obj(n)), bounds.FAIL_DATA, "data of bb.Fail", FILE),
    (
        lambda ctx, n: ctx.report(label=text(n + 2)),
        bounds.TEXT,
        "label of ctx.report",
        "say it shorter, and the rest with ctx.log",
    ),
    (
        lambda ctx, n: ctx.start(bb.function("f"), key=f"k{n}").cancel(text(n + 2)),
        bounds.TEXT,
        "reason of the cancel of k1025",
        "say it shorter, and the rest with ctx.log",
    ),
    (
        lambda ctx, n: ctx.start(bb.function("f", "x" * (n - SPEC_OVERHEAD)), key=f"k{n}"),
        bounds.SPEC,
        "effect k1048577",
        "pass a path or a reference instead",
    ),
]


@pytest.mark.parametrize(("write", "bound", "what", "instead"), WRITTEN, ids=[what for _w, _b, what, _i in WRITTEN])
@pytest.mark.invariant("I8", "I11")
def test_at_its_bound_it_is_kept_and_one_past_it_is_refused_at_the_line(
    write: Callable[[bb.Context, int], Any], bound: bounds.Bound, what: str, instead: str
) -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.run(bb.function("before"), key="before")
        write(ctx, bound.bytes_max)
        try:
            write(ctx, bound.bytes_max + 1)
        except bb.TooLarge as error:
            await ctx.run(bb.function("after"), key="after")
            return [str(error), error.size, error.limit]

    size, most = bound.bytes_max + 1, bound.bytes_max
    said = f"{what}: is {size} bytes; at most {most} fit: {instead}"
    assert run(body).rows("RUN_COMPLETED", "RUN_CLOSING")[0].data["result"]["value"] == [said, size, most]


@pytest.mark.invariant("I11")
def test_halt_and_continue_as_new_have_their_bounds_too() -> None:
    async def body(ctx: bb.Context, given: Any = None) -> Any:
        said = []
        for ask in (ctx.halt(text(1027)), ctx.continue_as_new("x" * (1 << 20))):
            with pytest.raises(bb.TooLarge) as caught:
                await ask
            said.append(str(caught.value))
        return said

    assert run(body).result == [
        "reason of ctx.halt: is 1025 bytes; at most 1024 fit: say it shorter, and the rest with ctx.log",
        f"input of ctx.continue_as_new: is 1048588 bytes; at most 1048576 fit: {FILE} to the next run",
    ]


def test_continue_as_new_refuses_at_the_line_what_the_next_run_could_not_read() -> None:
    async def body(ctx: bb.Context, count: int = 0) -> Any:
        with pytest.raises(bb.InvalidValue, match=r"input\.count: expected an integer, got text"):
            await ctx.continue_as_new("one")
        with pytest.raises(TypeError, match="too many positional arguments"):
            await ctx.continue_as_new(1, 2)
        return "goes on"

    assert run(body).result == "goes on"


def test_a_result_past_its_bound_parks_the_run_with_the_remedy() -> None:
    async def body(ctx: bb.Context) -> Any:
        return "x" * (16 << 20)

    driven = drive(bb.ProcessDefinition("body", body), {})
    assert driven.end is not None
    error = driven.end.data["error"]
    assert (driven.end.type, error["kind"]) == ("PROCESS_RUNTIME_ERROR", "INVALID_RESULT")
    assert error["message"] == f"result: is 16777218 bytes; at most 16777216 fit: {FILE} as the result"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda ctx: ctx.report(data=[1]), "data of ctx.report: list given, where an object (a dict) is expected"),
        (lambda ctx: ctx.report(label=5), "label of ctx.report: int given, where text is expected"),
        (lambda ctx: ctx.report(True), "percent=True: expected 0 to 100"),
        (lambda ctx: ctx.report(float("nan")), "percent=nan: expected 0 to 100"),
        (
            lambda ctx: ctx.report(label="a\x00"),
            "label of ctx.report: text holds a NUL character, which cannot be stored",
        ),
        (
            lambda ctx: bb.Fail("no", {1}),
            "data of bb.Fail: a set has no order that replay could repeat; use sorted(...)",
        ),
        (
            lambda ctx: ctx.start(bb.function("f"), key="f").cancel(ValueError("x")),
            "reason of the cancel of f: ValueError given, where text is expected",
        ),
    ],
)
def test_what_is_no_value_of_its_kind_is_refused_at_the_line(write: Callable[[bb.Context], Any], said: str) -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - InvalidValue and OptionError are both
            write(ctx)
        ctx.report(50, "half", {"a": 1})
        return str(caught.value)

    assert run(body).rows("RUN_COMPLETED", "RUN_CLOSING")[0].data["result"]["value"] == said


def test_the_details_of_an_error_are_bounded() -> None:
    async def body(ctx: bb.Context) -> Any:
        await bb.quorum([ctx.start(bb.function("f"), key=f"f/{n}") for n in range(DETAILS_MAX + 5)], k=1)

    driven = run(body, lambda _command: failed())
    assert driven.end is not None
    data = driven.end.data["error"]["data"]
    assert data[0] == {"key": "f/0", "ok": False, "reason": "RAISED"}
    assert data[DETAILS_MAX:] == ["and 5 more"]


def test_the_data_of_a_failure_is_checked_again_when_it_was_changed_meanwhile() -> None:
    async def body(ctx: bb.Context) -> Any:
        error = bb.Fail("no", {"n": 1})
        error.data["n"] = "x" * (64 << 10)
        raise error

    driven = run(body)
    assert driven.end is not None
    error = driven.end.data["error"]
    assert (driven.end.type, error["kind"]) == ("RUN_FAILED", "FAIL")
    assert error["data"]["invalid"].startswith("data: is 65544 bytes; at most 65536 fit")
