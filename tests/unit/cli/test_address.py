from pathlib import Path

from scheduler_service.cli.address import DEFAULT_ADDRESS, find_address, find_database, remove_address, write_address


def with_file(folder: Path, address: str) -> Path:
    data_dir = folder / ".backburner"
    data_dir.mkdir()
    write_address(data_dir, address, "postgresql://here")
    return data_dir / "address"


def test_the_flag_goes_before_everything(tmp_path: Path) -> None:
    with_file(tmp_path, "file:1")
    assert find_address("flag:1", {"BACKBURNER_ADDRESS": "env:1"}, tmp_path) == ("flag:1", "from --address")


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    with_file(tmp_path, "file:1")
    assert find_address(None, {"BACKBURNER_ADDRESS": "env:1"}, tmp_path)[0] == "env:1"


def test_the_file_is_found_from_a_folder_below(tmp_path: Path) -> None:
    path = with_file(tmp_path, "file:1")
    below = tmp_path / "src" / "deep"
    below.mkdir(parents=True)
    assert find_address(None, {}, below) == ("file:1", f"from {path}")


def test_a_file_that_was_taken_back_is_not_used(tmp_path: Path) -> None:
    with_file(tmp_path, "file:1")
    remove_address(tmp_path / ".backburner")
    remove_address(tmp_path / ".backburner")
    assert find_address(None, {}, tmp_path) == (DEFAULT_ADDRESS, "the default address")


def test_the_database_is_found_with_it_and_is_nobody_elses_business(tmp_path: Path) -> None:
    path = with_file(tmp_path, "file:1")
    assert find_database(tmp_path) == "postgresql://here"
    assert (path.parent / "database").stat().st_mode & 0o077 == 0
    remove_address(path.parent)
    assert find_database(tmp_path) is None


def test_an_empty_file_or_variable_counts_as_none(tmp_path: Path) -> None:
    with_file(tmp_path, "")
    assert find_address(None, {"BACKBURNER_ADDRESS": ""}, tmp_path)[0] == DEFAULT_ADDRESS
