"""``python -m tests.fuzz``: damage traces at random and use them, for a given time.

An input is a program of damage. Its first byte chooses a victim (a trace, or files for a replay),
the second a target to run on it (``fuzz_targets``), and each 8 bytes after that change one of its
files (``fuzz_damage``). So an input is small and means the same in later versions. ``--guided``
(``pip install atheris``) searches by coverage, in one process. Without it the inputs are random,
and each runs in a child with 10 s and 1 GiB of memory.

Rule: on any files every target ends soon, in bounded memory, and raises nothing but LttdError. An
input that breaks this rule becomes a file in ``fixtures/fuzz``, which test_fuzz.py replays.
"""

import argparse
import gc
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.confined import MOST_SECONDS, Ended, Worker
from tests.data import FIXTURES
from tests.fuzz_ctf import CTF
from tests.fuzz_damage import MOST_STEPS, STEP, Victim
from tests.fuzz_foreign import FOREIGN
from tests.fuzz_targets import REPLAYS, TARGETS, WRITERS, Target, remove
from tests.fuzz_traces import LATER_SOURCES, LATER_TRACES, MORE_TRACES, SOURCES, TRACES

CORPUS: Final = FIXTURES / "fuzz"
_COLLECT_AFTER: Final = 16


class Fuzzer:
    """The victims, and a method that runs one input on them."""

    def __init__(self, directory: Path) -> None:
        self.out = directory / "out"
        self._inputs = 0
        self.traces = [Victim(make(directory / make.__name__)) for make in TRACES]
        self.sources = [Victim(make(directory / make.__name__)) for make in SOURCES]
        more = [Victim(make(directory / make.__name__)) for make in MORE_TRACES]
        files = [Victim(make(directory / make.__name__)) for make in LATER_SOURCES]
        later = [Victim(make(directory / make.__name__)) for make in LATER_TRACES]
        ctf = [victim(make(directory / make.__name__)) for make, victim in CTF]
        foreign = [victim(make(directory / make.__name__)) for make, victim in FOREIGN]
        self.victims = [*self.traces, *self.sources, *more, *files, *later, *ctf, *foreign]
        self.sources += files

    def chosen(self, data: bytes) -> tuple[Victim, str, Target]:
        """Return the victim of an input, and the name and function of its target."""
        victim = self.victims[data[0] % len(self.victims)]
        targets = self.targets(victim)
        name = list(targets)[data[1] % len(targets)]
        return victim, name, targets[name]

    def targets(self, victim: Victim) -> dict[str, Target]:
        """Return the targets of a victim."""
        if victim.targets is not None:
            return dict(victim.targets)
        return REPLAYS if victim in self.sources else TARGETS

    def run(self, data: bytes) -> None:
        """Damage, run and restore.

        Raises:
            Exception: any but LttdError.
        """
        from lttd.errors import LttdError  # noqa: PLC0415  (after instrumentation)

        if len(data) < 2:
            return
        victim, name, target = self.chosen(data)
        touched = victim.damage(data[2:])
        try:
            with suppress(LttdError):
                target(victim.directory, self.out)
        finally:
            self._inputs += 1
            if self._inputs % _COLLECT_AFTER == 0:
                gc.unfreeze()  # each start of lttd freezes all objects
                gc.collect()
            victim.restore(None if name in WRITERS else touched)
            remove(self.out)

    def restore(self) -> None:
        """Restore every victim, after a child that was stopped half-way."""
        for victim in self.victims:
            victim.restore()
        remove(self.out)


class Finds:
    """The inputs that broke the rule: one file for each kind."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self.crashes: Counter[str] = Counter()

    def add(self, name: str, data: bytes, ended: Ended) -> None:
        """Save and print the first input of each kind."""
        lines = [line.strip() for line in ended.told.splitlines() if line.strip()]
        places = [line.split(", in ")[0] for line in lines if line.startswith("File ")]
        crash = f"{lines[-1] if lines else 'nothing'} {places[-1] if places else name}"
        crash = crash if ended.told.startswith("Traceback") else f"{name}: {crash}"
        self.crashes[crash] += 1
        if self.crashes[crash] == 1:
            path = self._directory / f"crash-{self._seed}-{len(self.crashes)}.bin"
            path.write_bytes(data)
            print(f"{path}: {name}: {data.hex()}\n{ended.told}", file=sys.stderr, flush=True)


def _may_be_of_others(ended: Ended) -> bool:
    """Tell whether the machine or an earlier input may be the reason; a second run decides."""
    return not ended.told.startswith("Traceback") or "MemoryError" in ended.told[-200:]


def blind(
    fuzzer: Fuzzer, seconds: float, seed: int, finds: Finds, only: str = ""
) -> tuple[Counter[str], float]:
    """Run random inputs; return their number by target, and the seconds of the slowest.

    *only*: a word in the names of the victims.
    """
    rng = random.Random(seed)
    numbers = [
        number for number, one in enumerate(fuzzer.victims) if only in str(one.directory.name)
    ]
    worker = Worker(fuzzer.run)
    end, counts, slowest = time.monotonic() + seconds, Counter[str](), 0.0
    while (begun := time.monotonic()) < end:
        data = bytes((rng.choice(numbers),))
        data += rng.randbytes(1 + STEP.size * rng.randint(1, MOST_STEPS))
        _, name, _ = fuzzer.chosen(data)
        ended = worker.run(data)
        if not ended.well and _may_be_of_others(ended):
            worker.stop()
            fuzzer.restore()
            ended = worker.run(data)
            if not ended.well:
                fuzzer.restore()
        elif ended.well:
            slowest = max(slowest, time.monotonic() - begun)
        if not ended.well:
            finds.add(name, data, ended)
        counts[name] += 1
    worker.stop()
    return counts, slowest


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; return 1 if an input broke the rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="WORD", help="victims whose names have it")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("--corpus", type=Path, help="where what is new is kept (--guided)")
    parser.add_argument("--keep", type=Path, default=Path(), help="where finds are written")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lttd-fuzz-", dir=_memory()) as directory:
        if options.guided:
            return _guided(options, Path(directory))
        finds = Finds(options.keep, options.seed)
        fuzzer, seconds = Fuzzer(Path(directory)), options.minutes * 60
        counts, slowest = blind(fuzzer, seconds, options.seed, finds, options.only)
    by_target = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"{counts.total()} inputs, seed {options.seed}: {by_target}")
    print(f"{len(finds.crashes)} kinds of finds; the slowest input took {slowest:.1f} s,"
          f" each had {MOST_SECONDS} s of CPU time and 1 GiB")  # fmt: skip
    return 1 if finds.crashes else 0


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
