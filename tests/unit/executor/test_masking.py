"""Secrets in streams, texts and JSON: gone, wherever the pieces are cut, and nothing else is."""

import random
from pathlib import Path

import orjson
import pytest

from executor_service.line_protocol import STEP_LENGTH_MAX, BadReport, Report, parse
from executor_service.masking import Masks, sensitive
from executor_service.outcome import Outcome

KEY = "sk-0123456789"
PEM = 'line one of it\nline "two" of it\n'


def masks(*values: str) -> Masks:
    made = Masks()
    made.add(values)
    return made


def test_a_secret_is_found_wherever_the_stream_is_cut() -> None:
    data = f"a{KEY}b{KEY}{KEY}".encode()
    for first in range(len(data)):
        for second in range(first, len(data)):
            stream = masks(KEY).stream()
            pieces = [stream.feed(data[:first]), stream.feed(data[first:second]), stream.feed(data[second:])]
            assert b"".join([*pieces, stream.close()]) == b"a***b******"


def test_what_only_begins_like_a_secret_comes_through_whole() -> None:
    stream = masks(KEY).stream()
    said = [stream.feed(b"x sk-01234"), stream.feed(b"nothing"), stream.feed(b" sk-0"), stream.close()]
    assert said == [b"x ", b"sk-01234nothing", b" ", b"sk-0"]


@pytest.mark.parametrize("seed", range(20))
def test_several_secrets_that_overlap_leave_no_whole_one(seed: int) -> None:
    random_ = random.Random(seed)
    secrets = ["abababab", "babababa", "abababababcd", "cdabababab"]
    text = "".join(random_.choice(["ab", "b", "a", "cd", *secrets]) for _ in range(60)).encode()
    stream, said, at = masks(*secrets).stream(), b"", 0
    while at < len(text):
        size = random_.randrange(1, 9)
        said, at = said + stream.feed(text[at : at + size]), at + size
    said += stream.close()
    assert not [secret for secret in secrets if secret.encode() in said]


def test_a_secret_of_several_lines_is_masked_line_by_line_and_as_json() -> None:
    hidden = masks(PEM)
    assert hidden.text(f"<{PEM}>") == "<***>"
    assert hidden.text('said: "line \\"two\\" of it"') == 'said: "***"'
    assert hidden.text("line one of it") == "***"


def test_json_stays_json() -> None:
    hidden = masks("12345678", KEY)
    given = b'{"sk-0123456789": [12345678, 1.5, true, null, "x sk-0123456789"]}'
    assert hidden.encoded(given) == b'{"***":["***",1.5,true,null,"x ***"]}'
    assert hidden.encoded(b'{"b": 1,  "a": 2}') == b'{"b": 1,  "a": 2}', "untouched when there is nothing in it"


def test_a_password_that_stands_in_paths_and_counts_damages_neither() -> None:
    """`postgresql://backburner:backburner@db`: where the work is, and what it consumed, is nothing that it said."""
    hidden = masks("backburner", "12345678", "input_tokens")
    workspace = {"path": "/var/lib/backburner/1", "branch": "backburner/1", "result_commit": "12345678", "kept": True}
    session = {"harness": "h", "session_id": "backburner", "executor_id": "backburner", "workspace": "/home/backburner"}
    usage = {"input_tokens": 12345678, "model": "m backburner"}
    outcome = Outcome(workspace=workspace | {"patch": "+backburner"}, session=dict(session), usage=dict(usage))
    outcome.captured = {"stdout": {"tail": "backburner", "total_bytes": 12345678}}
    outcome.mask(hidden)
    assert outcome.workspace == workspace | {"patch": "+***"}
    assert outcome.session == session | {"session_id": "***"}
    assert outcome.captured == {"stdout": {"tail": "***", "total_bytes": 12345678}}
    report = Report(usage=usage)
    report.mask(hidden)
    assert outcome.usage == report.usage == {"input_tokens": 12345678, "model": "m ***"}


def test_a_text_that_is_cut_to_its_length_leaves_no_half_of_a_secret() -> None:
    hidden, words = masks(KEY), "s" * (STEP_LENGTH_MAX - 4)
    assert parse(orjson.dumps({"step": words + KEY}), hidden).step == words + "***"
    failure = parse(orjson.dumps({"failure": {"reason": "OVERLOADED", "message": KEY}}), hidden).failure
    assert failure is not None
    assert failure.message == "***"
    with pytest.raises(BadReport, match="nested"):
        parse(b'{"usage": ' + b"[" * 900 + b"]" * 900 + b"}", hidden)


def test_without_secrets_everything_passes_at_once() -> None:
    nothing = masks("short")
    assert (bool(nothing), nothing.stream().feed(b"shor"), nothing.text("short")) == (False, b"shor", "short")


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("OPENAI_API_KEY", KEY, KEY),
        ("GITHUB_TOKEN", KEY, KEY),
        ("AWS_SECRET_ACCESS_KEY_ID_2", KEY, KEY),
        ("CLIENT_SECRET", KEY, KEY),
        ("PGPASSWORD", KEY, KEY),
        ("mysql_passwd", KEY, KEY),
        ("VAULT_CREDENTIALS", KEY, KEY),
        ("SENTRY_DSN", "https://0123456789abcdef@sentry.example/1", "https://0123456789abcdef@sentry.example/1"),
        ("REPORTING_DATABASE_URL", "postgresql://db.example/app", "postgresql://db.example/app"),
        ("HTTPS_PROXY", "http://ann:p4ss%2Fword@proxy:8080", "p4ss%2Fword"),
        ("HTTPS_PROXY", "http://ann:p4ss%2Fword@proxy:8080", "p4ss/word"),
        ("CACHE", "redis://:longpassword@cache:6379/0", "longpassword"),
        ("PG", "host=db user=ann password='long password' dbname=x", "long password"),
        ("PG", "postgresql://db/app?user=ann&password=longpassword&x=1", "longpassword"),
        ("PIP_INDEX_URL", "https://ann:a@b:c@d!23@pypi.example/simple", "a@b:c@d!23"),
    ],
)
def test_what_is_secret_of_the_variables_of_a_child(name: str, value: str, secret: str) -> None:
    hidden = masks(*sensitive({name: value}))
    for first in range(len(secret) + 1):  # wherever the stream is cut
        stream = hidden.stream()
        said = stream.feed(f"<{secret[:first]}".encode()) + stream.feed(f"{secret[first:]}>".encode()) + stream.close()
        assert said == b"<***>"


def test_what_is_no_secret_of_them_stays_readable(tmp_path: Path) -> None:
    key_file = tmp_path / "key.json"
    key_file.write_text("{}")
    plain = {
        "PATH": "/usr/local/bin:/usr/bin", "HOME": "/home/somebody", "KEYBOARD_LAYOUT": "us-international",
        "MAX_TOKENS": "1000000000", "ORIGIN": "https://somebody@host.example/path", "PASSWORD": "1234567",
        "GOOGLE_APPLICATION_CREDENTIALS": str(key_file), "AT": "http://host:8080/a@b", "NUL_TOKEN": "/a\0",
    }  # fmt: skip
    hidden = masks(*sensitive(plain))
    assert {name: hidden.text(value) for name, value in plain.items()} == plain
