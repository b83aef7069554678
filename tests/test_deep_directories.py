"""A start ends well in directories deeper than any channel name."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.cli import main

LEVELS = 1500


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    at = os.open(tmp_path, os.O_RDONLY)
    for name in ("deep", *"d" * LEVELS):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)  # rmtree() would recurse as deep


@pytest.mark.parametrize(
    "spec", ["replay:{}", "replay:{},abi=ltt", "replay:{},abi=ctf", "relay:{}", "ltt:{}"]
)
def test_a_source_reports_in_one_line_that_a_deep_directory_holds_nothing(
    deep: Path, tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-t", str(tmp_path / "t"), "--source", spec.format(deep)]) == 77
    *_, line = capsys.readouterr().err.splitlines()
    assert "unforeseen" not in line
    assert str(deep) in line
    assert not (tmp_path / "t").exists()
