"""Replay the finds of the fuzzer, and test that it finds damage."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fuzz, fuzz_damage
from tests.confined import Worker


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Fuzzer:
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def worker(fuzzer: fuzz.Fuzzer) -> Iterator[Worker]:
    worker = Worker(fuzzer.run)
    yield worker
    worker.stop()


@pytest.mark.parametrize("found", sorted(fuzz.CORPUS.iterdir()), ids=lambda path: path.stem)
def test_every_saved_find_ends_in_our_own_error_or_in_none(
    fuzzer: fuzz.Fuzzer, worker: Worker, found: Path
) -> None:
    ended = worker.run(found.read_bytes())
    if not ended.well:
        fuzzer.restore()
    assert ended.well, ended.told


def test_every_target_survives_some_damage(fuzzer: fuzz.Fuzzer, worker: Worker) -> None:
    rng = random.Random(5)
    for victim in range(len(fuzzer.victims)):
        for target in range(len(fuzzer.targets(fuzzer.victims[victim]))):
            data = bytes((victim, target)) + rng.randbytes(8 * rng.randint(1, 3))
            ended = worker.run(data)
            assert ended.well, f"{data.hex()}: {ended.told}"


def test_the_fuzzer_undoes_damage_and_passes_errors_on(
    fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_trace: Path, _out: Path) -> None:
        raise KeyError

    monkeypatch.setattr(fuzz, "TARGETS", {"fails": fails})
    with pytest.raises(KeyError):
        fuzzer.run(bytes(2) + bytes((0, 4, 0, 0, 0, 0, 0, 0)))
    for victim in fuzzer.traces:
        assert {path: path.read_bytes() for path in victim.whole} == victim.whole


def test_every_kind_of_file_replaces_a_file_and_is_removed_again(fuzzer: fuzz.Fuzzer) -> None:
    victim = fuzzer.traces[0]
    file_types = set()
    for value in range(16):
        step = fuzz_damage.STEP.pack(0, fuzz_damage.REPLACE, 0, value | 1 << 8)
        (path,) = victim.damage(step)
        file_types.add("none" if not os.path.lexists(path) else path.lstat().st_mode & 0o170000)
        victim.restore({path})
        assert path.read_bytes() == victim.whole[path]
    assert len(file_types) >= 6


def test_a_hang_or_too_much_cpu_time_or_memory_ends_only_that_input() -> None:
    def act(data: bytes) -> None:
        if data == b"hang":
            time.sleep(60)
        while data == b"spin":
            pass
        if data == b"eat":
            bytearray(2 << 30)
        if data == b"die":
            os._exit(3)

    worker = Worker(act)
    try:
        assert worker.run(b"").well
        assert worker.run(b"hang", hangs_after_s=0.2).told == "not over after 0.2 s"
        spun = worker.run(b"spin", most_seconds=0.2)
        assert spun.told == "not over after 0.2 s of CPU time"
        assert worker.run(b"eat").told.endswith("MemoryError\n")
        assert worker.run(b"die").told.startswith("ended with status ")
        assert worker.run(b"").well
    finally:
        worker.stop()
