"""What the tests share: how hypothesis draws, the shipped catalogs, a small plan and its finished run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from sweep.catalogs import Catalogs, load_catalogs
from sweep.plan import Plan, build_plan
from sweep.spec import Spec, load_spec, parse_spec

DATA = Path(__file__).parent / "data"
TODAY = dt.date(2026, 11, 21)

settings.register_profile("sweep", deadline=None, derandomize=True)
settings.load_profile("sweep")


@pytest.fixture(scope="session")
def catalogs() -> Catalogs:
    """The shipped catalogs."""
    return load_catalogs()


@pytest.fixture(scope="session")
def make_plan(catalogs: Catalogs) -> Callable[..., Plan]:
    """The plan of a spec's text, which stands among the data of the tests."""

    def make(text: str, catalogs: Catalogs = catalogs, today: dt.date = TODAY) -> Plan:
        return build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, today)

    return make


@pytest.fixture(scope="session")
def small_spec() -> Spec:
    return load_spec(DATA / "small.toml")


@pytest.fixture(scope="session")
def small_plan(small_spec: Spec, catalogs: Catalogs) -> Plan:
    return build_plan(small_spec, catalogs, TODAY)


@pytest.fixture(scope="session")
def small_run(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of the small plan; tests read it and leave it as it is."""
    from sweep import engine

    folder = tmp_path_factory.mktemp("runs") / "small"
    engine.run(small_plan, folder, threads=2)
    return folder
