"""Data of the tests: small fixtures in this repository, and large real traces beside it."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"
FTRACE = FIXTURES / "ftrace"
"""A copied tracefs tree, as ``replay:`` reads it."""
SHARED = Path(__file__).parents[2] / "shared" / "data"
SHARED_BLKTRACE = SHARED / "blktrace"
SHARED_FTRACE = SHARED / "ftrace"
SHARED_LTT = SHARED / "ltt-2.5"
"""A real trace of LTTng 0.x, of 2010."""
SHARED_CTF = SHARED / "ctf"
"""Real CTF traces, of lttng-modules and of others."""


def needs(directory: Path) -> pytest.MarkDecorator:
    """Skip a test where these data are missing."""
    return pytest.mark.skipif(not directory.is_dir(), reason=f"{directory} is missing")
