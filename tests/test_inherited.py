"""lttd takes over the sockets that systemd opened for it, and only these."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.running import QUIET, Launcher, free_port, get, needs_kernel, until

# Make descriptor 3 as MAKE says, and take it over as this process's or another's.
TAKE = """
import os, socket, sys
from lttd.errors import LttdError
from lttd.inherited import take_sockets
made = eval(sys.argv[1])
if made is not None:
    os.dup2(made if isinstance(made, int) else made.fileno(), 3)
    os.set_inheritable(3, True)
else:
    os.closerange(3, 4)
pid = str(os.getpid() + int(sys.argv[2]))
os.environ.update(LISTEN_FDS="1", LISTEN_PID=pid, LISTEN_FDNAMES="x")
try:
    taken = take_sockets()
except LttdError as error:
    sys.exit(f"{error.exit_status} {error}")
print(len(taken), [os.get_inheritable(each.fileno()) for each in taken], len(take_sockets()),
      [name for name in os.environ if name.startswith("LISTEN_")])
"""
LISTENER = "socket.create_server(('127.0.0.1', 0))"


def take(make: str, pid_off: int = 0) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", TAKE, make, str(pid_off)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_listening_socket_is_taken_over_once_and_by_no_child() -> None:
    done = take(LISTENER)
    assert (done.stdout, done.stderr) == ("1 [False] 0 []\n", "")
    done = take("socket.create_server(('::1', 0), family=socket.AF_INET6)")
    assert done.stdout.startswith("1 ") or "Cannot assign" in done.stderr


def test_a_socket_for_another_process_is_not_taken() -> None:
    assert take(LISTENER, pid_off=1).stdout == "0 [] 0 []\n"


@pytest.mark.parametrize(
    "make",
    ["socket.socket()", "socket.socket(type=socket.SOCK_DGRAM)", "socket.socketpair()[0]",
     "os.pipe()[0]", "None"],
)  # fmt: skip
def test_what_is_not_a_tcp_listener_is_a_usage_error_of_one_line(make: str) -> None:
    done = take(make)
    (line,) = done.stderr.splitlines()
    assert line.startswith("2 ")
    assert "LISTEN_FDS" in line


class TestOnThisKernel:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize("metrics", [(), ("--metrics", "127.0.0.1:1")], ids=["", "address"])
    def test_a_passed_socket_serves_metrics_in_place_of_the_address(
        self, lttd: Launcher, metrics: tuple[str, ...]
    ) -> None:
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            pytest.skip("no systemd-socket-activate here")
        port = free_port()
        under = [activate, "-l", f"127.0.0.1:{port}", f"--setenv=RUNTIME_DIRECTORY={lttd.runtime}"]
        run = lttd.start("-t", lttd.cwd / "t", *QUIET, *metrics, under=under)
        until(lambda: "Listening on" in run.stderr, "the socket listens")
        assert lttd.left() == []
        # The connection starts lttd, and waits in the queue until lttd answers.
        until(lambda: get(port, "/metrics")[0] == 200, "lttd answers")
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.wait() == 0, run.stderr
