"""An ETA is what the child said, counted down, else what past attempts took; without a basis there is none."""

import datetime as dt
from dataclasses import fields
from typing import Any

import pytest

from scheduler_service.api.eta import Eta, eta_of
from scheduler_service.api.waiting import poll_after
from scheduler_service.journal.client_views import EffectView

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


def effect(**given: Any) -> EffectView:
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(EffectView)), None)
    values |= {"namespace": "default", "name": "build", "state": "RUNNING", "poll_interval_s": 5.0}
    return EffectView(**(values | {"started_at": ago(40), "last_activity_at": ago(10)} | given))


def took_100(namespace: str, name: str) -> float | None:
    return 100.0 if (namespace, name) == ("default", "build") else None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"progress": {"eta": "30.000s"}}, Eta(20, False)),
        ({"progress": {"eta": "30s", "eta_estimated": True}}, Eta(20, True)),
        ({"progress": {"eta": "10.000s"}}, Eta(60, True)),  # run out: the past tells
        ({"progress": {"percent": 5}}, Eta(60, True)),
        ({}, Eta(60, True)),
        ({"started_at": None, "dispatched_at": ago(1), "state": "DISPATCHED"}, Eta(99, True)),
        ({"started_at": ago(101)}, None),  # longer than ever: nobody knows
        ({"name": "other"}, None),
        ({"namespace": "other"}, None),
        ({"name": "other", "progress": {"percent": 50}}, None),
        ({"started_at": None}, None),
        *(({"state": state}, None) for state in ("QUEUED", "WAITING", "PARKED", "CANCELLING", "SUCCEEDED", "FAILED")),
    ],
)
def test_eta(given: dict[str, Any], expected: Eta | None) -> None:
    assert eta_of(effect(**given), took_100, NOW) == expected


@pytest.mark.parametrize(
    ("eta", "seconds"), [(None, 5.0), (Eta(3, True), 3.0), (Eta(90, True), 5.0), (Eta(0.01, False), 0.2)]
)
def test_pollers_come_back_when_the_end_is_near(eta: Eta | None, seconds: float) -> None:
    assert poll_after(effect(), eta) == seconds
