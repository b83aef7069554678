"""The holders of locks, by /proc/locks."""

import fcntl
from pathlib import Path

import pytest

from lttd.locks import first_listed, holder_of, is_listed


def files(directory: Path, count: int) -> list[Path]:
    made = [directory / str(number) for number in range(count)]
    for path in made:
        path.touch()
    return made


def test_the_first_locked_one_of_several_files_is_found(tmp_path: Path) -> None:
    paths = files(tmp_path, 4)
    statuses = [path.stat() for path in paths]
    with paths[2].open() as one, paths[3].open() as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert first_listed(statuses) == statuses[2]
        assert [is_listed(status) for status in statuses] == [False, False, True, True]
        assert "(pid " in holder_of(statuses[2])
    assert first_listed(statuses) is None


def test_the_list_of_locks_is_read_once_for_any_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_text = Path.read_text

    def counted(path: Path, *arguments: str) -> str:
        reads.append(path)
        return read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", counted)
    first_listed([path.stat() for path in files(tmp_path, 64)])
    assert reads == [Path("/proc/locks")]
