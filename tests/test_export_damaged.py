"""Export and cut damaged traces: keep the readable part, or give the reason in one line."""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lttd.errors import LttdError
from lttd.view.commands.cut import cut
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.running import PATIENCE_S
from tests.tools import replayed

FORMATS = ("trace.dat", "ctf")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed(tmp_path_factory.mktemp("sound") / "t").path


FLIPS = st.lists(
    st.tuples(
        st.sampled_from(["", "index/"]), st.integers(0, 1), st.floats(0, 1), st.integers(1, 255)
    ),
    min_size=1,
    max_size=6,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(FLIPS, st.none() | st.floats(0, 1))
def test_damaged_traces_are_exported_or_refused_in_one_line(
    sound: Path, tmp_path: Path, flips: list[tuple[str, int, float, int]], end: float | None
) -> None:
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    shutil.copytree(sound, work / "t")
    (segment,) = (work / "t").iterdir()
    for where, cpu, place, mask in flips:
        path = segment / "streams" / f"{where}ftrace_{cpu}{'.idx' if where else ''}"
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= mask
        path.write_bytes(data)
    if end is not None:
        path = segment / "streams" / "ftrace_1"
        path.write_bytes(path.read_bytes()[: int(end * path.stat().st_size)])
    for to in FORMATS:
        with suppress(LttdError):
            export(Trace(work / "t"), EVERYTHING, to, work / to)
    with suppress(LttdError):
        cut(Trace(work / "t"), EVERYTHING, work / "cut")
    if (work / "ctf").exists() and shutil.which("babeltrace2"):
        command = ["babeltrace2", "--output-format=dummy", work / "ctf"]
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert run.returncode == 0, run.stderr
