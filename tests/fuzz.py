"""``python -m tests.fuzz``: damages traces at random and reads them, for as long as it is told to.

An input is a program of damage: a byte chooses the trace, one who reads it, and each 8 bytes
after that do one thing to one of its files.  So an input is small, means the same tomorrow, and
what a fuzzer learns of it holds.  With atheris (``pip install atheris``) coverage guides the
search, else it is blind.

Rule: whatever the files hold, a reader ends soon, in bounded memory, and raises nothing but
LttdError.  An input that breaks it becomes a file in ``fixtures/fuzz``, which test_fuzz.py replays.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Final

from tests.fuzz_traces import FIXTURES, TRACES

CORPUS: Final = FIXTURES / "fuzz"
MOST_SECONDS: Final = 20
MOST_MEMORY_BYTES: Final = 6 << 30
STEP: Final = struct.Struct("<BBHI")
MOST_STEPS: Final = 12
EDGES: Final = (
    0,
    1,
    7,
    8,
    0x7F,
    0xFF,
    0xFFFF,
    1 << 20,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
)


@contextmanager
def quick() -> Iterator[None]:
    """Raise if what is done inside takes too long."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Victim:
    """A trace, and its files as they should be."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace
        self.whole = {
            path: path.read_bytes() for path in sorted(trace.rglob("*")) if path.is_file()
        }
        # Streams and their indexes are most of the code: they are most of the places, too.
        streams = [path for path in self.whole if "streams" in path.parts]
        self.places = [*streams, *streams, *self.whole]

    def damage(self, program: bytes) -> set[Path]:
        """Do what *program* says; return the files that it touched."""
        now = dict(self.whole)
        touched = set()
        for number in range(min(len(program) // STEP.size, MOST_STEPS)):
            which, what, at, value = STEP.unpack_from(program, number * STEP.size)
            path = self.places[which % len(self.places)]
            now[path] = _damaged(now[path], what, at, value)
            touched.add(path)
        for path in touched:
            path.unlink()  # another inode: what was mapped stays what it was
            if now[path] is not None:
                path.write_bytes(now[path])
        return touched

    def restore(self, touched: set[Path]) -> None:
        """Make files what they were."""
        for path in touched:
            path.unlink(missing_ok=True)
            path.write_bytes(self.whole[path])


def _damaged(held: bytes, what: int, at: int, value: int) -> bytes:
    data = bytearray(held)
    place, edge = at * len(data) >> 16, EDGES[value % len(EDGES)]
    match what % 8:
        case 0 if data:
            data[place] ^= 1 << value % 8
        case 1 if data:
            data[place] = value & 0xFF
        case 2:
            data[place & ~3 : (place & ~3) + 4] = struct.pack("<I", value)
        case 3:
            order = "little" if value & 1 else "big"
            data[place & ~7 : (place & ~7) + 8] = edge.to_bytes(8, order)  # type: ignore[arg-type]
        case 4:
            del data[place:]
        case 5:
            del data[place : place + value % 97]
        case 6:
            data[place:place] = data[place : place + value % 97]
        case _:  # a number in a text
            if found := re.compile(rb"\d+").search(data, place):
                data[slice(*found.span())] = str(-edge if value & 256 else edge).encode()
    return bytes(data)


class Fuzzer:
    """The traces, those who read them, and one input at a time."""

    def __init__(self, directory: Path) -> None:
        from lttd.errors import UsageError  # noqa: PLC0415  (after instrumentation)

        self.out = directory / "out"
        self.victims = [Victim(make(directory / make.__name__)) for make in TRACES]
        for victim in self.victims:
            for reader in READERS:
                with suppress(UsageError):  # of another kind, or without pyarrow
                    reader(victim.trace, self.out)  # whole: there is nothing to complain of
                self.remove_output()

    def run(self, data: bytes) -> None:
        """Read one damaged trace.

        Raises:
            Exception: whatever is not LttdError.
        """
        from lttd.errors import LttdError  # noqa: PLC0415  (after instrumentation)

        if len(data) < 2:
            return
        victim = self.victims[data[0] % len(self.victims)]
        reader = READERS[data[1] % len(READERS)]
        touched = victim.damage(data[2:])
        try:
            with quick(), suppress(LttdError):
                reader(victim.trace, self.out)
        finally:
            victim.restore(touched)
            self.remove_output()

    def remove_output(self) -> None:
        """Make room for what the next one makes."""
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.unlink(missing_ok=True)


def columns(trace: Path, _: Path) -> None:
    """Read all columns of what a condition leaves."""
    import lttd  # noqa: PLC0415

    for batch in lttd.open(trace).window(where="prev_pid == 7 or count > 1 or id"):
        for rows in batch.by_type():
            rows.columns()


def text(trace: Path, _: Path, *, json: bool = False) -> None:
    """Write lines."""
    from lttd.view.filters import Filter  # noqa: PLC0415
    from lttd.view.show import Show, show_text  # noqa: PLC0415
    from lttd.view.times import EVERYTHING  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    show = Show(Filter(None, None, None), json=json, jobs=1)
    with Path(os.devnull).open("w") as out, redirect_stdout(out), redirect_stderr(out):
        show_text([Trace(trace)], EVERYTHING, show)


def info(trace: Path, _: Path) -> None:
    """Tell what there is."""
    from lttd.view.info import dump, info_json, info_text  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    info_text(Trace(trace))
    dump(info_json(Trace(trace)))


def check(trace: Path, _: Path) -> None:
    """Say what is wrong."""
    from lttd.tracedir import segments  # noqa: PLC0415
    from lttd.view.check import check_all, report_text  # noqa: PLC0415

    report_text(*check_all(segments(trace), events=True, repairing=False))


def narrow(trace: Path, out: Path) -> None:
    """Cut."""
    from lttd.view.cut import cut  # noqa: PLC0415
    from lttd.view.times import window_of  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    opened = Trace(trace)
    cut(opened, window_of(opened, "+1us", "-1us"), out)


def drawn(trace: Path, out: Path) -> None:
    """Draw."""
    from lttd.view.filters import Filter  # noqa: PLC0415
    from lttd.view.plot import plot  # noqa: PLC0415
    from lttd.view.times import EVERYTHING  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    out.mkdir()
    plot(Trace(trace), EVERYTHING, Filter(None, None, None), out / "p.html")


def exported(trace: Path, out: Path, *, to: str) -> None:
    """Export."""
    from lttd.view.export import export  # noqa: PLC0415
    from lttd.view.times import EVERYTHING  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    export(Trace(trace), EVERYTHING, to, out)


READERS: Final[Sequence[Callable[[Path, Path], None]]] = (
    columns, text, partial(text, json=True), info, check, narrow, drawn,
    partial(exported, to="trace.dat"), partial(exported, to="ctf"),
    partial(exported, to="perfetto"), partial(exported, to="parquet"),
    partial(exported, to="blktrace"), partial(exported, to="ltt"),
)  # fmt: skip


def blind(fuzzer: Fuzzer, seconds: float, seed: int) -> int:
    """Run random inputs; return how many."""
    rng = random.Random(seed)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = rng.randbytes(2 + STEP.size * rng.randint(1, MOST_STEPS))
        try:
            fuzzer.run(data)
        except Exception:
            name = Path(f"crash-{seed}-{count}")
            name.write_bytes(data)
            print(f"{name}: {data.hex()}", file=sys.stderr)
            raise
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, by coverage where atheris is."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--corpus", type=Path, help="where what is new is kept (atheris)")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES,) * 2)
    with tempfile.TemporaryDirectory(prefix="lttd-fuzz-", dir=_memory()) as directory:
        if options.blind or not find_spec("atheris"):
            count = blind(Fuzzer(Path(directory)), options.minutes * 60, options.seed)
            print(f"{count} inputs, without atheris: nothing but LttdError came out")
            return 0
        return _guided(options, Path(directory))


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _guided(options: argparse.Namespace, directory: Path) -> int:
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["lttd"]):
        fuzzer = Fuzzer(directory)
    corpus = options.corpus or directory / "corpus"
    corpus.mkdir(exist_ok=True)
    seconds = int(options.minutes * 60)
    words = [
        sys.argv[0], f"-max_total_time={seconds}", f"-seed={options.seed}", "-rss_limit_mb=0",
        f"-max_len={2 + STEP.size * MOST_STEPS}", "-timeout=60", str(corpus), str(CORPUS),
    ]  # fmt: skip
    atheris.Setup(words, fuzzer.run)
    atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
