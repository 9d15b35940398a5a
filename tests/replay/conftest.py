"""Fixtures of the replay tests."""

import gc

import pytest


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of this test alone: runs that earlier tests left unfinished are told of when they are collected."""
    gc.collect()
    return caplog
