"""What the fuzzer once found, again; and that it finds."""

import random
from pathlib import Path

import pytest

from tests import fuzz


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Fuzzer:
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("found", sorted(fuzz.CORPUS.iterdir()), ids=lambda path: path.stem)
def test_what_was_found_once_ends_in_an_error_of_ours_or_in_none(
    fuzzer: fuzz.Fuzzer, found: Path
) -> None:
    fuzzer.run(found.read_bytes())


def test_every_reader_bears_some_damage(fuzzer: fuzz.Fuzzer) -> None:
    rng = random.Random(5)
    for number in range(2 * len(fuzz.READERS)):
        steps = rng.randbytes(8 * rng.randint(1, 4))
        fuzzer.run(bytes((number // len(fuzz.READERS), number % len(fuzz.READERS))) + steps)


def test_damage_is_undone_and_an_error_is_not_swallowed(
    fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_trace: Path, _out: Path) -> None:
        raise KeyError

    monkeypatch.setattr(fuzz, "READERS", [fails])
    with pytest.raises(KeyError):
        fuzzer.run(bytes(2) + bytes((0, 4, 0, 0, 0, 0, 0, 0)))
    for victim in fuzzer.victims:
        assert {path: path.read_bytes() for path in victim.whole} == victim.whole
