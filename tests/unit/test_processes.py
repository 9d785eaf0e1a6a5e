import tempfile
from pathlib import Path

import pytest

from app.domain.errors import StartupError
from app.processes import supervise
from app.settings import Settings


def test_without_a_directory_for_their_sockets_the_processes_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StartupError, match="TMPDIR"):
        supervise(Settings().replace("server", {"processes": 2}))
