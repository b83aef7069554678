"""systemd accepts systemd/lttd.service, and its limits leave enough room."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "systemd" / "lttd.service"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)
# Resident memory with everything loaded, and after the default backlog was full.
RESIDENT = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import lttd.daemon, lttd.endpoint, lttd.metrics, lttd.sources.ftrace.source
from lttd.config import Config
from lttd.subbuffer import TAKE_BYTES, BufferPool
pool = BufferPool(Config("t", ()).backlog_bytes + TAKE_BYTES)
pool._arena[::4096] = bytes(len(pool._arena) // 4096)
print(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
"""


def setting(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@needs_systemd
def test_systemd_analyze_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/lttd/bin/lttd", "/bin/true"))
    words = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_exposure_level_matches_the_docs() -> None:
    words = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(UNIT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    exposure = re.search(r"exposure level for lttd.service: (\d\.\d)", done.stdout)
    assert exposure, done.stderr
    docs = (UNIT.parents[1] / "docs" / "SYSTEMD.md").read_text()
    (documented,) = re.findall(r"lttd.service` says (\d\.\d) ", docs)
    # The score differs a little between versions of systemd.
    assert abs(float(exposure[1]) - float(documented)) <= 0.2


def test_only_this_machine_can_reach_the_service() -> None:
    assert setting("IPAddressDeny") == ["any"]
    assert setting("IPAddressAllow") == ["localhost"]
    assert setting("LimitCORE") == ["0"]


@pytest.mark.slow
def test_the_memory_limit_is_four_times_a_full_backlog() -> None:
    words = [sys.executable, "-c", RESIDENT]
    resident_kb = int(subprocess.run(words, capture_output=True, check=True).stdout)
    assert 64 << 10 < resident_kb < 160 << 10
    (most,) = setting("MemoryMax")
    assert 4 * resident_kb < int(most.removesuffix("G")) << 20
