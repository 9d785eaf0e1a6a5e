"""What ``pip install ./client`` installs."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

_CLIENT = Path(__file__).parents[2] / "client"


def test_the_package_is_typed_and_needs_httpx_alone(tmp_path: Path) -> None:
    source = shutil.copytree(_CLIENT, tmp_path / "source")  # building writes beside the sources
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)  # noqa: S603 (our own package)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert Parser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist") == ["httpx>=0.28"]
    assert (installed / "chinese_sentiment_client" / "py.typed").exists()
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import chinese_sentiment_client as c; print(c.__file__)"
    )
    program += "; assert 'app' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True)  # noqa: S603
    assert str(installed) in done.stdout.decode()
