"""`pytest tests/soak --soak-seconds 3600` soaks for an hour; without the option, for ten seconds."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=10.0, help="how long the soak lasts (default 10)")


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    seconds: float = request.config.getoption("--soak-seconds", default=10.0)
    return seconds
