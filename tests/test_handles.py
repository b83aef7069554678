"""A handle finds its directory under any name, and never another directory."""

import os
from pathlib import Path

import pytest

from lttd.handles import handle_of, is_there

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to ask for a handle takes a capability")


def made(path: Path) -> str:
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        handle = handle_of(fd)
    finally:
        os.close(fd)
    if not handle:
        pytest.skip("this file system has no handles")
    return handle


@needs_root
def test_a_moved_directory_is_still_found(tmp_path: Path) -> None:
    handle = made(tmp_path / "a")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "far" / "away" / "b")
    assert is_there(handle, str(tmp_path)) is True


@needs_root
def test_a_removed_directory_is_gone_even_if_its_inode_is_reused(
    tmp_path: Path,
) -> None:
    handle, inode = made(tmp_path / "a"), (tmp_path / "a").stat().st_ino
    (tmp_path / "a").rmdir()
    others = [made(tmp_path / f"{number}") for number in range(20)]
    if inode not in (path.stat().st_ino for path in tmp_path.iterdir()):
        pytest.skip("this file system has not used the inode again")
    assert is_there(handle, str(tmp_path)) is False
    assert handle not in others


@needs_root
def test_a_removed_directory_is_gone_even_while_a_process_has_it_open(tmp_path: Path) -> None:
    handle = made(tmp_path / "a")
    fd = os.open(tmp_path / "a", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (tmp_path / "a").rmdir()
        assert is_there(handle, str(tmp_path)) is False
    finally:
        os.close(fd)


@pytest.mark.parametrize("handle", ["", "1", "1:", "1:zz", "x:00", "1:" + "00" * 200, "9" * 30])
def test_an_invalid_handle_gives_no_answer(tmp_path: Path, handle: str) -> None:
    assert is_there(handle, str(tmp_path)) in (None, False)
    assert is_there(handle, str(tmp_path / "nowhere")) is None
