"""Configuration: default < file < environment < flag, and errors that say where."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.config import find_config, load_config
from exporter.errors import ConfigError


def _write(folder: Path, text: str, name: str = "exporter.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    """A flag beats the environment, the environment the file, the file the default."""
    path = _write(tmp_path, "[latency]\nbatch = 4\nthreads = 4\nrounds = 30\n")
    environment = {"EXPORTER_LATENCY_THREADS": "3", "EXPORTER_LATENCY_ROUNDS": "40", "OTHER": "1"}
    config = load_config(path, environment=environment, flags={"latency": {"rounds": 50, "batch": None}})
    assert (config.latency.batch, config.latency.threads, config.latency.rounds) == (4, 3, 50)
    assert config.latency.margin == 0.02
    assert config.base == tmp_path


def test_environment_values_are_toml_or_text() -> None:
    """``true`` is a boolean, a word is a word."""
    environment = {"EXPORTER_TENSORRT_REQUIRED": "true", "EXPORTER_TENSORRT_PYTHON": "/usr/bin/python3"}
    config = load_config(environment=environment)
    assert config.tensorrt.required is True
    assert config.tensorrt.python == "/usr/bin/python3"


@pytest.mark.parametrize(
    ("text", "code", "match"),
    [
        pytest.param("[latncy]\nbatch = 1", "E703", "did you mean latency", id="unknown section"),
        pytest.param("[latency]\nbach = 1", "E703", "latency -> bach", id="unknown key"),
        pytest.param("[latency]\nbatch = 'many'", "E704", "latency -> batch", id="wrong type"),
        pytest.param("[latency]\nbatch = 0", "E704", "greater than or equal to 1", id="out of range"),
        pytest.param("[tensorrt]\nrequired = 1", "E704", "tensorrt -> required", id="a number is no boolean"),
        pytest.param("base = 'x'", "E703", "base", id="base is not a key of the file"),
        pytest.param("[latency\n", "E702", "exporter.toml", id="no TOML"),
    ],
)
def test_a_wrong_file_says_where_and_what(tmp_path: Path, text: str, code: str, match: str) -> None:
    """Every mistake names its place and is a usage error."""
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_config(path, environment={})
    assert caught.value.code == code
    assert caught.value.exit_status == 2
    assert str(path) in str(caught.value)


def test_an_unknown_environment_variable_is_an_error() -> None:
    """A misspelt variable is not ignored."""
    with pytest.raises(ConfigError, match="EXPORTER_LATENCY_BACH"):
        load_config(environment={"EXPORTER_LATENCY_BACH": "1"})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that was named must exist."""
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")


def test_find_config_prefers_exporter_toml_and_reads_pyproject(tmp_path: Path) -> None:
    """``exporter.toml`` wins; ``pyproject.toml`` counts only with a ``[tool.exporter]`` table."""
    assert find_config(tmp_path) is None
    project = _write(tmp_path, "[tool.other]\n", "pyproject.toml")
    assert find_config(tmp_path) is None
    project.write_text("[tool.exporter.latency]\nbatch = 7\n")
    assert find_config(tmp_path) == project
    assert load_config(project, environment={}).latency.batch == 7
    own = _write(tmp_path, "")
    assert find_config(tmp_path) == own


@pytest.mark.parametrize("text", ["latency = 3", "model = 'timm:resnet18'"])
def test_a_value_where_a_section_stands_is_an_error(tmp_path: Path, text: str) -> None:
    """It is named as one, also where the environment or a flag has a key for that section."""
    path = _write(tmp_path, text)
    environment = {"EXPORTER_LATENCY_ROUNDS": "40"}
    with pytest.raises(ConfigError, match="a table") as caught:
        load_config(path, environment=environment, flags={"model": {"factory": "auto"}})
    assert caught.value.code == "E704"
