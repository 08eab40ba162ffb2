"""The federation of the fault exam, and what its rows report."""

from collections.abc import Callable, Iterator

import pytest

from tests.faults.federation import Federation, federation


@pytest.fixture(scope="session")
def one_federation(tmp_path_factory) -> Iterator[Federation]:
    """Brought up once."""
    with federation(tmp_path_factory.mktemp("faults") / "fed") as running:
        yield running


@pytest.fixture
def fed(one_federation: Federation) -> Iterator[Federation]:
    """The federation, sound again; see `tests.faults.federation`."""
    one_federation.heal()
    yield one_federation
    one_federation.heal()


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes what was seen, a sentence or a number, for the exam's table."""
    return lambda text: request.node.user_properties.append(("seen", str(text)))
