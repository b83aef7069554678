"""Other readers of relay files are noticed, and what they took is counted as taken by them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lttd.health import Health
from lttd.sources.base import Nothing
from lttd.sources.relay.others import OthersWatch
from lttd.subbuffer import Batch, Gap, Reason, Unit
from tests.relay_streams import ModelStream

HELD = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"


class File(ModelStream):
    """A stream of the model, whose file other processes can open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.touch()
        self.stream.path = str(path)
        self.real = path.open("rb")
        self.stream.fileno = self.real.fileno  # type: ignore[method-assign]

    def gaps(self) -> list[Gap]:
        """Take everything, and return the gaps."""
        found: list[Gap] = []
        for _ in range(4):
            taken = self.stream.take(flush=True)
            found += taken.gaps if isinstance(taken, Batch) else ()
        return found

    def steal(self, count: int) -> None:
        """Read as another process does."""
        assert self.model.read(memoryview(bytearray(count))) == count


@contextmanager
def reader_of(path: Path) -> Iterator[int]:
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", HELD, str(path)], stdin=pipe, stdout=pipe)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
    finally:
        child.communicate()


class Watching:
    """A watch on two files, with the lines that it writes."""

    def __init__(self, directory: Path) -> None:
        self.lines: list[str] = []
        self.files = [File(directory / f"chan{cpu}") for cpu in range(2)]
        self.streams = [file.stream for file in self.files]
        self.watch = OthersWatch("channels", lambda: self.streams)
        for file in self.files:
            file.shared.look_for_others = self.watch.heard
        clock: Callable[[], int] = iter(range(0, 1 << 60, 1 << 40)).__next__
        self.watch.arm(Health(lambda line, _: self.lines.append(line), clock))

    def close(self) -> None:
        self.watch.disarm()
        for file in self.files:
            file.real.close()

    def look(self) -> None:
        """Do what the housekeeping does until nothing is due."""
        for _ in range(4):
            self.watch.tick()
            if self.watch.wants_closer_look:
                self.watch.look_closer()
        self.watch.tick()


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    made = Watching(tmp_path)
    yield made
    made.close()


def test_a_reader_that_was_there_before_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "chan0").touch()
    with reader_of(tmp_path / "chan0") as pid:
        made = Watching(tmp_path)
        made.look()
        (line,) = made.lines
        assert line.startswith("channels: python")
        assert f"(pid {pid}) can take data of these files, too" in line
        assert [one.others.present for one in made.streams] == [True, False]
    made.look()
    assert made.lines[1:] == [
        "channels: no other process reads these files now; 0 bytes went to others"
    ]
    made.close()


def test_what_another_process_took_is_counted_as_read_by_it(watching: Watching) -> None:
    file, other = watching.files
    watching.look()
    with reader_of(Path(file.stream.path)) as pid:
        watching.look()
        file.write(*range(20))
        file.model.flush()
        other.write(*range(20))
        file.steal(100)
        (gap,) = file.gaps()
        assert (gap.reason, gap.unit, gap.count) == (Reason.FOREIGN_READ, Unit.BYTES, 100)
        assert file.stream.counters()["foreign read bytes"] == 100
        assert other.gaps() == []
        watching.look()
    assert f"(pid {pid}) can take data" in watching.lines[0]
    watching.look()
    assert watching.lines[1].endswith("no other process reads these files now;"
                                      " 100 bytes went to others")  # fmt: skip


def test_a_reader_that_is_gone_before_it_can_be_named_is_an_act(watching: Watching) -> None:
    file, _ = watching.files
    watching.look()
    file.write(*range(20))
    file.model.flush()
    with reader_of(Path(file.stream.path)):
        file.steal(100)
    (gap,) = file.gaps()  # reads what inotify has to say, before it counts
    assert (gap.reason, gap.count) == (Reason.FOREIGN_READ, 100)
    watching.look()
    assert watching.lines == [
        "channels: another process opened a file that lttd reads, which takes data from it;"
        " 100 bytes went to others"
    ]


def test_bytes_of_the_open_sub_buffer_are_counted_when_it_is_closed(watching: Watching) -> None:
    file, _ = watching.files
    file.write(*range(5))
    with reader_of(Path(file.stream.path)):
        file.steal(60)
    watching.look()
    assert file.gaps() == []
    file.model.flush()
    assert [(gap.reason, gap.count) for gap in file.gaps()] == [(Reason.FOREIGN_READ, 60)]
    assert not file.stream.others.present


def test_later_losses_are_the_kernels_own_again(watching: Watching) -> None:
    file, _ = watching.files
    with reader_of(Path(file.stream.path)):
        watching.look()
    watching.look()
    file.write(*range(20))
    file.model.flush()
    assert file.gaps() == []
    file.write(*range(20, 40))
    file.model.flush()
    file.steal(100)  # stands for a sub-buffer that the kernel skips
    reasons = {(gap.reason, gap.unit) for gap in file.gaps()}
    assert reasons == {(Reason.REFUSED, Unit.BYTES), (Reason.DROPPED, Unit.EVENTS)}


def test_with_another_reader_no_record_is_read_before_it_is_filled_in(watching: Watching) -> None:
    file, _ = watching.files
    with reader_of(Path(file.stream.path)):
        watching.look()
        file.write(*range(10))
        file.write(10)  # closes the first sub-buffer
        file.steal(100)
        assert file.model.reserve(20) is not None  # and is never filled in
        taken = file.stream.take(flush=True)
        assert isinstance(taken, Batch)
        assert sum(map(len, taken.pieces())) == 100
        assert file.stream.take(flush=True) is Nothing.YET
