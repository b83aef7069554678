"""systemd accepts the units of systemd/, their limits leave room, and lttd accepts lttd.toml."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.config import parse_command_line
from lttd.doctor import command
from lttd.priority import FIRST_NICE

UNIT = Path(__file__).parents[1] / "systemd" / "lttd.service"
TEMPLATE = UNIT.with_name("lttd@.service")
SOCKET = UNIT.with_name("lttd.socket")
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


def setting(name: str, unit: Path = UNIT) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def settings(unit: Path) -> list[str]:
    return re.findall(r"^[A-Z]\w+=.*$|^\[.*\]$", unit.read_text(), re.MULTILINE)


@needs_systemd
def test_systemd_analyze_accepts_the_units(tmp_path: Path) -> None:
    for unit in (UNIT, TEMPLATE, SOCKET):
        # Of the template, an instance.
        name = unit.name.replace("@", "@x")
        (tmp_path / name).write_text(unit.read_text().replace("/opt/lttd/bin/lttd", "/bin/true"))
        words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", [UNIT, TEMPLATE], ids=lambda unit: unit.name)
def test_the_exposure_level_matches_the_docs(unit: Path) -> None:
    words = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    exposure = re.search(r"exposure level for lttd(?:@i)?.service: (\d\.\d)", done.stdout)
    assert exposure, done.stderr
    docs = (UNIT.parents[1] / "docs" / "SYSTEMD.md").read_text()
    (documented,) = re.findall(r"lttd.service` says (\d\.\d) ", docs)
    # The score differs a little between versions of systemd.
    assert abs(float(exposure[1]) - float(documented)) <= 0.2
    assert float(exposure[1]) <= 2.0


def test_the_template_is_the_service_with_files_of_its_own() -> None:
    ours = [line.replace("lttd.toml", "%i.toml") for line in settings(UNIT)]
    ours = [line + "-%i" if line == "StateDirectory=lttd" else line for line in ours]
    ours = [line + " (%i)" if line.startswith("Description=") else line for line in ours]
    assert settings(TEMPLATE) == ours
    assert settings(TEMPLATE) != settings(UNIT)


def test_the_service_runs_before_ordinary_programs() -> None:
    assert setting("Nice") == [str(FIRST_NICE)]


def test_every_recorder_shares_the_runtime_directory_and_a_crash_keeps_it() -> None:
    for unit in (UNIT, TEMPLATE):
        assert setting("RuntimeDirectory", unit) == ["lttd"]
        assert setting("RuntimeDirectoryPreserve", unit) == ["yes"]


def test_the_compressor_s_calls_are_allowed_after_the_denials() -> None:
    *_, denied, allowed = setting("SystemCallFilter")
    assert denied.startswith("~")
    assert allowed == "ioprio_set sched_setscheduler setpriority"


def test_the_socket_lives_and_ends_with_the_service_and_has_rules_of_its_own() -> None:
    assert setting("BindsTo", SOCKET) == ["lttd.service"]
    assert setting("WantedBy", SOCKET) == ["lttd.service"]
    assert setting("IPAddressDeny", SOCKET) == setting("IPAddressDeny")
    assert setting("IPAddressAllow", SOCKET) == setting("IPAddressAllow")
    config = parse_command_line(["--config", str(UNIT.with_name("lttd.toml")), "-t", "t"])
    assert setting("ListenStream", SOCKET) == [config.metrics]


def test_lttd_accepts_the_shipped_configuration_and_each_line_that_is_commented_out(
    tmp_path: Path,
) -> None:
    shipped = UNIT.with_name("lttd.toml").read_text()
    assert parse_command_line(["--config", str(UNIT.with_name("lttd.toml")), "-t", "t"])
    everything = tmp_path / "lttd.toml"
    everything.write_text(re.sub(r"^#(?=[a-z-]+ = )", "", shipped, flags=re.MULTILINE))
    assert everything.read_text() != shipped
    config = parse_command_line(["--config", str(everything), "-t", "t"])
    assert config.web_allow_hosts == {"db1.example.com"}


def test_every_doctor_of_the_service_examines_its_trace_directory() -> None:
    """The unit names it, and the shipped configuration does not."""
    root = UNIT.parents[1]
    (start,) = setting("ExecStart")
    assert "--trace-dir ${STATE_DIRECTORY}/trace" in start
    wanted = f"--trace-dir /var/lib/{setting('StateDirectory')[0]}/trace"
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("systemd/*")]
    texts = {path.name: path.read_text() for path in files} | {"--help": command._EPILOG}
    asked = {
        name: line
        for name, text in texts.items()
        for line in text.splitlines()
        if "lttd doctor" in line and "lttd.toml" in line
    }
    assert asked.keys() == {"README.md", "SYSTEMD.md", "lttd.toml", "--help"}
    assert [name for name, line in asked.items() if wanted not in line] == []


def test_the_shipped_configuration_bounds_the_store() -> None:
    config = parse_command_line(["--config", str(UNIT.with_name("lttd.toml")), "-t", "t"])
    assert config.max_bytes
    assert config.min_free_bytes
    # Without a size of segments, nothing would be closed, and so nothing could be deleted.
    assert config.roll_limits.payload_bytes


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
