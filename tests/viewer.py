"""Run lttv within the process of the test."""

import pytest

from lttd.view.cli import main


def run(capfdbinary: pytest.CaptureFixture[bytes], *words: object) -> tuple[int, bytes, str]:
    """Run lttv; return its status, stdout and stderr."""
    status = main([str(word) for word in words])
    out, err = capfdbinary.readouterr()
    return status, out, err.decode()
