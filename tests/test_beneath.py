"""Open files below a directory: no name leads out of it, and no kind of file blocks."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lttd import openat
from lttd.beneath import OpenDirectory
from lttd.errors import RefusedError
from lttd.readfile import ReadFile

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(params=["open_by_kernel", "open_by_steps"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with openat2, and with the steps for kernels without it."""
    name: str = request.param
    monkeypatch.setattr(OpenDirectory, "_open", staticmethod(getattr(openat, name)))
    return name


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[OpenDirectory]:
    (tmp_path / "t" / "below").mkdir(parents=True)
    (tmp_path / "t" / "below" / "file").write_bytes(b"inside")
    (tmp_path / "victim").write_bytes(b"outside")
    opened = OpenDirectory.open(tmp_path / "t")
    yield opened
    opened.close()


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


def a_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


IRREGULAR = {
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a directory": os.mkdir,
    "a symbolic link": lambda path: os.symlink("../victim", path),
    "a device": a_device,
}
irregular = pytest.mark.parametrize(
    "file_type", [pytest.param(k, marks=needs_root if k == "a device" else ()) for k in IRREGULAR]
)


def put(file_type: str, path: Path) -> Path:
    make: Callable[[Path], None] = IRREGULAR[file_type]
    make(path)
    return path


def read(directory: OpenDirectory, path: Path) -> bytes:
    with open(directory.open_file(path), "rb") as file:
        return file.read()


def test_openat2_is_used_on_kernels_that_have_it() -> None:
    has_openat2 = tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 6)
    expected = openat.open_by_kernel if has_openat2 else openat.open_by_steps
    opened = os.listdir("/proc/self/fd")
    assert openat.way_to_open() is expected
    assert os.listdir("/proc/self/fd") == opened


def test_an_absent_path_is_neither_a_file_nor_a_directory(trace: OpenDirectory) -> None:
    for path in (trace.path / "absent", trace.path / "absent" / "below"):
        assert not trace.is_file(path)
        assert not trace.is_directory(path)


def test_a_file_is_read_as_a_whole(trace: OpenDirectory) -> None:
    path = trace.path / "below" / "file"
    assert read(trace, path) == b"inside"
    path.write_bytes(b"")
    assert read(trace, path) == b""


@irregular
def test_only_regular_files_are_read_and_no_other_kind_blocks(
    trace: OpenDirectory, file_type: str
) -> None:
    path = put(file_type, trace.path / "odd")
    with pytest.raises(RefusedError, match=file_type):
        trace.open_file(path)
    assert not trace.is_file(path)


@irregular
def test_only_regular_files_are_written_to(trace: OpenDirectory, file_type: str) -> None:
    path = put(file_type, trace.path / "odd")
    with pytest.raises(RefusedError, match=file_type):
        trace.open_for_writing(path)
    with pytest.raises(FileExistsError):
        trace.create(path)


def test_a_symbolic_link_in_the_middle_of_a_path_is_not_followed(
    trace: OpenDirectory, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"outside")
    (trace.path / "link").symlink_to(tmp_path / "elsewhere")
    path = trace.path / "link" / "file"
    uses: list[Callable[[], object]] = [
        lambda: trace.open_file(path),
        lambda: trace.open_for_writing(path),
        lambda: trace.open_for_writing(trace.path / "link" / "new"),
        lambda: trace.create(trace.path / "link" / "new"),
        lambda: trace.make_directory(trace.path / "link" / "new"),
        lambda: trace.create_directory(trace.path / "link" / "new"),
        lambda: trace.make_directory(trace.path / "link"),
        lambda: trace.rename(path, "new"),
        lambda: trace.remove_file(path),
        lambda: trace.remove_tree(trace.path / "link"),
        lambda: trace.names(trace.path / "link"),
        lambda: trace.enter(trace.path / "link"),
    ]
    for use in uses:
        with pytest.raises(OSError, match=r"link|[Nn]ot a directory"):
            use()
    assert os.listdir(tmp_path / "elsewhere") == ["file"]
    assert next(trace.walk(trace.path))[1:] == (["below"], ["link"])
    assert trace.directories(trace.path) == ["below"]


def test_a_path_with_two_dots_is_refused(trace: OpenDirectory) -> None:
    for path in (trace.path / ".." / "victim", trace.path / "below" / ".." / ".." / "victim"):
        with pytest.raises(RefusedError, match="leads out"):
            trace.open_file(path)
    with pytest.raises(AssertionError, match="not below"):
        trace.open_file(trace.path.parent / "victim")


def test_links_in_the_path_of_the_directory_itself_are_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"real")
    (tmp_path / "link").symlink_to("real")
    named = OpenDirectory.open(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "real").rename(tmp_path / "moved")
    (tmp_path / "link").mkdir()
    os.close(named.open_for_writing(tmp_path / "link" / "new"))
    assert read(named, tmp_path / "link" / "file") == b"real"
    assert sorted(os.listdir(tmp_path / "moved")) == ["file", "new"]
    assert os.listdir(tmp_path / "link") == []


@pytest.mark.parametrize("name", [".", "t", "./t", "../here/t"])
def test_a_directory_opens_under_any_form_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    (here / "t").mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / name / "file").write_bytes(b"here")
    opened = OpenDirectory.open(Path(name))
    path = Path(name) / "file"
    assert opened.holds(path)
    assert not opened.holds(tmp_path / "victim")
    assert read(opened, path) == b"here"
    assert opened.names(Path(name)) == sorted(os.listdir(name))


def test_a_file_with_two_names_is_not_opened_for_writing(
    trace: OpenDirectory, tmp_path: Path
) -> None:
    path = trace.path / "linked"
    os.link(tmp_path / "victim", path)
    with pytest.raises(RefusedError, match="has 2 names"):
        trace.open_for_writing(path)
    assert read(trace, path) == b"outside"


@needs_root
def test_a_file_of_another_user_is_not_opened_for_writing(trace: OpenDirectory) -> None:
    path = trace.path / "below" / "file"
    os.chown(path, 65534, 65534)
    with pytest.raises(RefusedError, match="belongs to user 65534"):
        trace.open_for_writing(path)
    assert read(trace, path) == b"inside"


@needs_root
def test_a_directory_of_another_user_is_refused_for_writing(trace: OpenDirectory) -> None:
    trace.refuse_foreign()
    os.chown(trace.path, 65534, 0)
    with pytest.raises(RefusedError, match="belongs to user 65534, and only its owner may"):
        trace.refuse_foreign()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused_for_writing(
    trace: OpenDirectory, mode: int
) -> None:
    trace.path.chmod(mode)
    with pytest.raises(RefusedError, match="chmod go-w"):
        trace.refuse_foreign()


def test_the_remedy_for_a_shared_directory_is_a_new_one_below_it(trace: OpenDirectory) -> None:
    trace.path.chmod(0o1777)
    with pytest.raises(RefusedError, match="name a new one below it"):
        trace.refuse_foreign()


def test_a_directory_is_made_together_with_its_parents(trace: OpenDirectory) -> None:
    path = trace.path / "a" / "b" / "c"
    trace.make_directory(path)
    trace.make_directory(path)
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)} == {0o750}
    with pytest.raises(FileExistsError):
        trace.create_directory(path)
    with pytest.raises(NotADirectoryError):
        trace.make_directory(trace.path / "below" / "file" / "c")


def test_removing_a_tree_removes_its_links_and_keeps_their_targets(
    trace: OpenDirectory, tmp_path: Path
) -> None:
    (trace.path / "below" / "link").symlink_to(tmp_path)
    trace.remove_tree(trace.path / "below")
    assert os.listdir(trace.path) == []
    assert (tmp_path / "victim").exists()


def test_no_call_leaves_a_descriptor_open(trace: OpenDirectory, tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    os.mkfifo(trace.path / "fifo")
    os.link(tmp_path / "victim", trace.path / "linked")
    for name in ("fifo", "linked", "absent", "below", "below/file/x"):
        for use in (trace.open_for_writing, trace.open_file, trace.make_directory, trace.stat):
            try:
                got = use(trace.path / name)
            except OSError:
                continue
            if isinstance(got, int):
                os.close(got)
    trace.enter(trace.path / "below")
    ReadFile(trace.path / "below" / "file").read(0, 1)
    assert descriptors() == before
