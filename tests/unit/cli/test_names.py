import io
from pathlib import Path

import pytest

from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.names import effect_candidates, is_prefix, is_uuid, read_input, read_labels, read_value

RUN = "0198f2c4-a1b2-7c3d-8e4f-0123456789ab"


def test_a_whole_id_is_told_from_a_part_of_one() -> None:
    assert is_uuid(RUN)
    assert not is_uuid(RUN[:-1])
    assert is_prefix(RUN[:6])
    assert is_prefix("0123456789ab")


@pytest.mark.parametrize("name", ["0198f", "not-hex", "", "0198f2/tests"])
def test_what_is_too_short_or_not_hexadecimal_is_no_part_of_an_id(name: str) -> None:
    assert not is_prefix(name)


def test_an_effect_is_a_run_and_a_key_that_may_hold_slashes() -> None:
    assert effect_candidates("0198f2c4/lint/a.py") == [("0198f2c4", "lint/a.py")]


def test_a_run_key_with_slashes_is_read_in_every_way() -> None:
    assert effect_candidates("key:rel/1/tests") == [("key:rel", "1/tests"), ("key:rel/1", "tests")]


@pytest.mark.parametrize("name", ["tests", "/tests", "0198f2c4/", "key:/x"])
def test_half_of_a_name_names_no_effect(name: str) -> None:
    assert effect_candidates(name) == []


def test_pairs_are_json_where_they_parse_and_text_elsewhere() -> None:
    given = read_input(None, ["n=3", "on=true", "name=main", "files=[1, 2]", "empty=", "eq=a=b"])
    assert given == {"n": 3, "on": True, "name": "main", "files": [1, 2], "empty": "", "eq": "a=b"}


def test_pairs_are_set_on_top_of_the_input() -> None:
    assert read_input('{"a": 1, "b": 2}', ["b=3"]) == {"a": 1, "b": 3}


def test_input_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"a": 1}')
    assert read_input(f"@{file}", []) == {"a": 1}


def test_input_is_read_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}'))
    assert read_input("-", []) == {"a": 1}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"cannot read .*nowhere\.json: No such file"):
        read_input(f"@{tmp_path}/nowhere.json", [])


@pytest.mark.parametrize(("source", "kind"), [("[1]", "array"), ("3", "number"), ("null", "null"), ('"x"', "string")])
def test_an_input_that_is_no_object_is_refused_by_its_kind(source: str, kind: str) -> None:
    with pytest.raises(UsageProblem, match=f"a JSON {kind}, not an object"):
        read_input(source, [])


def test_broken_json_says_where_it_breaks() -> None:
    with pytest.raises(UsageProblem, match=r"not JSON: .* at column 8 of line 1") as caught:
        read_value('{"a": 1')
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("pair", ["novalue", "=x"])
def test_a_pair_without_a_name_or_a_value_is_refused(pair: str) -> None:
    with pytest.raises(UsageProblem, match="is not KEY=VALUE"):
        read_input(None, [pair])
    with pytest.raises(UsageProblem, match="is not NAME=VALUE"):
        read_labels([pair])


def test_labels_stay_text() -> None:
    assert read_labels(["n=3", "team=web"]) == {"n": "3", "team": "web"}
