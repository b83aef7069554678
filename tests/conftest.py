"""Fixtures of several test modules, and the settings of hypothesis."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lttd.recorder import Recorder
from lttd.sources.ftrace import instance
from lttd.sources.mounts import find_tracefs
from tests.fuse import why_no_fuse
from tests.ltt_kernel import Kernel, running_kernel
from tests.ltt_runs import Runs
from tests.running import Launcher, build_load, launching

NIGHTLY = os.environ.get("LTTD_NIGHTLY") == "1"

# nohup and background jobs ignore these signals, and all programs that tests start would too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# By day the examples are the same in every run; a nightly run searches for new ones. A busy
# machine makes single examples slow, so there is no deadline.
settings.register_profile("lttd", deadline=None, derandomize=not NIGHTLY)
settings.load_profile("lttd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Keywords also have the names of directories, such as that of the checkout.
        if item.get_closest_marker("nightly") and not NIGHTLY:
            item.add_marker(pytest.mark.skip(reason="nightly: LTTD_NIGHTLY=1 runs it"))
        # tools/run-tests runs unmarked tests in a mount name space without tracefs.
        if "lttd" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("kernel"):
            raise pytest.UsageError(f"{item.nodeid} records from this kernel: mark it so")


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory of an lttd that runs within the test's process."""
    path = tmp_path / "runtime"
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(path))
    return path


@pytest.fixture(autouse=True)
def kept_process() -> Iterator[None]:
    """Fail a test that leaves this process pinned, slow or elsewhere: later tests start from it.

    The nice value, which lttd's main() takes, is put back.
    """
    nice, session = os.getpriority(os.PRIO_PROCESS, 0), session_nice()
    before = os.sched_getaffinity(0), os.sched_getscheduler(0), os.getcwd()
    yield
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    after = os.sched_getaffinity(0), os.sched_getscheduler(0), os.getcwd()
    os.sched_setaffinity(0, before[0])
    os.chdir(before[2])
    assert after == before
    assert session_nice() == session


def session_nice() -> str:
    """Return the nice value of this process's session, as Linux shares CPUs among sessions."""
    try:
        return Path("/proc/self/autogroup").read_text().split()[-1]
    except (FileNotFoundError, IndexError):
        return ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A recorder with its writer threads running."""
    recorder = Recorder()
    recorder.start()
    yield recorder
    recorder.close()


@pytest.fixture
def instances(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of instances, for an lttd within the test's process; none may be left."""
    prefix = f"lttdtest{os.getpid()}in-"
    monkeypatch.setattr(instance, "OWN_PREFIX", prefix)
    directory = find_tracefs() / "instances"
    yield directory
    left = [name for name in os.listdir(directory) if name.startswith(prefix)]
    for name in left:
        (directory / name).rmdir()
    assert left == [], "instances were left behind"


@pytest.fixture
def foreign(instances: Path) -> Iterator[Path]:
    """An instance of another tool, which has chosen its clock and records nothing yet."""
    path = instances / f"{instance.OWN_PREFIX}foreign"
    path.mkdir()
    (path / "trace_clock").write_text("mono")
    yield path
    path.rmdir()


@pytest.fixture
def lttd(tmp_path: Path) -> Iterator[Launcher]:
    """Start lttd processes; fail if one leaves an instance in the kernel."""
    with launching(tmp_path) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def syscall_load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a program that makes system calls and nothing else."""
    return build_load(tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="session")
def _ltt_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    if why := why_no_fuse():
        pytest.skip(f"no emulated kernel: {why}")
    with running_kernel(tmp_path_factory.mktemp("ltt")) as kernel:
        yield kernel


@pytest.fixture
def ltt_kernel(_ltt_kernel: Kernel) -> Iterator[Kernel]:
    """An emulated LTTng 0.x kernel without channels."""
    yield _ltt_kernel
    _ltt_kernel.clear()


@pytest.fixture
def lttds(tmp_path: Path) -> Iterator[Runs]:
    """Start lttd processes on an emulated kernel; they end with the test."""
    runs = Runs(tmp_path)
    yield runs
    runs.end()
