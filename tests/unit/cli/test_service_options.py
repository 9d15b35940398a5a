from dataclasses import fields
from importlib import import_module
from typing import Any

import click
import pytest

from scheduler_service.cli.service_options import EXECUTOR, SCHEDULER, Setting, as_env, with_settings


@pytest.mark.parametrize(("service", "settings"), [("scheduler_service", SCHEDULER), ("executor_service", EXECUTOR)])
def test_every_setting_of_a_service_has_its_flag(service: str, settings: tuple[Setting, ...]) -> None:
    known = {item.name for item in fields(import_module(f"{service}.settings").Settings)}
    flagged = {setting.name.lower() for setting in settings}
    assert flagged - {"executor_database_url"} == known


@pytest.mark.parametrize(("service", "settings"), [("scheduler_service", SCHEDULER), ("executor_service", EXECUTOR)])
def test_the_defaults_that_help_shows_are_the_real_ones(service: str, settings: tuple[Setting, ...]) -> None:
    module = import_module(f"{service}.settings")
    defaults = {item.name: item.default for item in fields(module.Settings)}
    for setting in settings:
        default = defaults.get(setting.name.lower())
        if isinstance(default, int | float | str) and default != "":
            assert setting.default == (str(default).lower() if isinstance(default, bool) else f"{default:g}"
                                       if isinstance(default, float) else str(default)), setting.name  # fmt: skip


def test_only_what_was_given_goes_into_the_environment() -> None:
    given = {"listen": "0.0.0.0:7233", "process_modules": ("a", "b"), "lease_seconds": None, "database_url": "db"}
    assert as_env(SCHEDULER, given) == {
        "DATABASE_URL": "db",
        "BACKBURNER_LISTEN": "0.0.0.0:7233",
        "BACKBURNER_PROCESS_MODULES": "a,b",
    }


def test_repeated_settings_have_singular_flags() -> None:
    seen: dict[str, str] = {}

    @click.command()
    @with_settings(SCHEDULER)
    def command(**given: Any) -> None:
        seen.update(as_env(SCHEDULER, given))

    command.main(["--process-module", "a", "--process-module", "b"], standalone_mode=False)
    assert seen == {"BACKBURNER_PROCESS_MODULES": "a,b"}
