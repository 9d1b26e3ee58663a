"""What every test stands on: a state folder of its own, one thread, the digits fixture and the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a GPU machine has no Hypothesis, and the tests for it need none
    pass
else:  # the same examples in every run, and none that fails because the machine is slow
    settings.register_profile(
        "exporter", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    )
    settings.load_profile("exporter")

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before numpy and torch read them: timings and sums do not depend on the machine's load
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_BROWSER = "EXPORTER_REQUIRE_BROWSER"
REQUIRE_CONTRACT = "EXPORTER_REQUIRE_CONTRACT"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update``: golden files and generated pages are written anew instead of compared."""
    parser.addoption("--update", action="store_true", help="write golden files and generated pages anew; look at the difference before you commit it")


@pytest.fixture(scope="session")
def update(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew."""
    return bool(request.config.getoption("--update"))


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the secret that keys records, and every cache, away from the user's own state folder."""
    folder = tmp_path_factory.mktemp("state")
    before = os.environ.get("EXPORTER_STATE_DIR")
    os.environ["EXPORTER_STATE_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EXPORTER_STATE_DIR"]
    else:
        os.environ["EXPORTER_STATE_DIR"] = before


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell (``EXPORTER_TENSORRT_REQUIRED=true``) do not reach a test."""
    for variable in list(os.environ):
        if variable.startswith("EXPORTER_") and variable not in {"EXPORTER_STATE_DIR", REQUIRE_BROWSER, REQUIRE_CONTRACT}:
            monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A copy of ``fixtures/digits`` that a test may write to."""
    folder = tmp_path / "digits"
    shutil.copytree(ROOT / "fixtures" / "digits", folder, ignore=shutil.ignore_patterns(".exporter", "__pycache__"))
    return folder


RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Run ``exporter ARGS...`` as its own process, as a user does; ``cwd`` is where, ``env`` adds variables.

    Its own process because imports, signals and the exit status are part of what is tested; use click's ``CliRunner`` for
    the rest.
    """

    def run(
        *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 240.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "import sys; from exporter.cli.app import main; sys.exit(main())", *map(str, args)],
            cwd=cwd or tmp_path,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT), **(env or {})},
            text=True,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run
