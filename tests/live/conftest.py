from collections.abc import Iterator

import pytest

from tests.live.served import RunningServer, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves the real bundle and remembers no answer; shared, so a test leaves it running."""
    with running_server(tmp_path_factory.mktemp("server"), CACHE__MAX_BYTES="0") as server:
        yield server
