"""A trace of a real program by stock lttng-ust: packed, and printed as babeltrace2 prints it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lttd.view.cli import main as lttv_main
from tests.running import PATIENCE_S
from tests.test_ctf_view import assert_as_babeltrace2, lines_of
from tests.test_sources_replay_ctf import assert_reads_the_same, record

HEADER = Path("/usr/include/lttng/tracepoint.h")
ABSENT = [
    name for name in ("lttng", "lttng-sessiond", "gcc", "babeltrace2") if shutil.which(name) is None
] + ([] if any(Path("/usr/include").rglob("lttng/tracepoint.h")) else [HEADER.name])
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        bool(ABSENT),
        reason=f"absent: {', '.join(ABSENT)} (Debian: lttng-tools liblttng-ust-dev babeltrace2)",
    ),
]

PROVIDER = """
#undef LTTNG_UST_TRACEPOINT_PROVIDER
#define LTTNG_UST_TRACEPOINT_PROVIDER my
#undef LTTNG_UST_TRACEPOINT_INCLUDE
#define LTTNG_UST_TRACEPOINT_INCLUDE "./provider.h"
#if !defined(PROVIDER_H) || defined(LTTNG_UST_TRACEPOINT_HEADER_MULTI_READ)
#define PROVIDER_H
#include <stddef.h>
#include <stdint.h>
#include <arpa/inet.h>
#include <lttng/tracepoint.h>
LTTNG_UST_TRACEPOINT_ENUM(my, sort, LTTNG_UST_TP_ENUM_VALUES(
    lttng_ust_field_enum_value("ZERO", 0)
    lttng_ust_field_enum_range("FEW", 1, 4)
    lttng_ust_field_enum_range("SOME", 4, 9)
    lttng_ust_field_enum_value("MANY \\"of\\" them", 10)))
LTTNG_UST_TRACEPOINT_EVENT(my, numbers, LTTNG_UST_TP_ARGS(uint64_t, n),
    LTTNG_UST_TP_FIELDS(
        lttng_ust_field_integer(int8_t, i8, (int8_t) -n)
        lttng_ust_field_integer(uint16_t, u16, (uint16_t) (n * 40503))
        lttng_ust_field_integer(int32_t, i32, (int32_t) (n * 2654435761u))
        lttng_ust_field_integer(uint64_t, u64, ~n)
        lttng_ust_field_integer_hex(uint64_t, hex, ~n << 7)
        lttng_ust_field_integer_network(uint32_t, net, htonl((uint32_t) n))
        lttng_ust_field_integer_network_hex(uint16_t, net_hex, htons((uint16_t) n))
        lttng_ust_field_float(float, f, (float) n / 3)
        lttng_ust_field_float(double, d, -1e300 / (double) (n + 1))
        lttng_ust_field_enum(my, sort, unsigned char, sort, (unsigned char) (n % 12))))
LTTNG_UST_TRACEPOINT_EVENT(my, lists,
    LTTNG_UST_TP_ARGS(const char *, text, const uint16_t *, list, size_t, count),
    LTTNG_UST_TP_FIELDS(
        lttng_ust_field_string(s, text)
        lttng_ust_field_array(uint16_t, array, list, 3)
        lttng_ust_field_array_hex(uint16_t, array_hex, list, 2)
        lttng_ust_field_array_text(char, array_text, text, 6)
        lttng_ust_field_sequence(uint16_t, sequence, list, size_t, count)
        lttng_ust_field_sequence_hex(uint16_t, sequence_hex, list, uint8_t, count)
        lttng_ust_field_sequence_text(char, sequence_text, text, size_t, count)))
LTTNG_UST_TRACEPOINT_EVENT(my, nothing, LTTNG_UST_TP_ARGS(), LTTNG_UST_TP_FIELDS())
#endif
#include <lttng/tracepoint-event.h>
"""
PROGRAM = """
#define LTTNG_UST_TRACEPOINT_CREATE_PROBES
#define LTTNG_UST_TRACEPOINT_DEFINE
#include "provider.h"
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
    uint16_t list[7];
    char text[64];
    for (long n = 0; n < atol(argv[1]); n++) {
        for (int at = 0; at < 7; at++)
            list[at] = (uint16_t) (n * 31 + at);
        snprintf(text, sizeof text, "text %ld\\t\\"%c\\"", n, 'a' + (int) (n % 26));
        lttng_ust_tracepoint(my, numbers, (uint64_t) n);
        lttng_ust_tracepoint(my, lists, text, list, (size_t) (n % 8));
        if (n % 5 == 0)
            lttng_ust_tracepoint(my, nothing);
    }
    return 0;
}
"""


class Lttng:
    """Stock lttng of a user of its own, so that no other session daemon is met."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._environment = {"PATH": os.environ["PATH"], "LTTNG_HOME": str(home), "LANG": "C"}
        self._environment |= {"HOME": str(home), "LTTNG_UST_REGISTER_TIMEOUT": "-1"}
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # root's daemon would be the machine's
            nobody = pwd.getpwnam("nobody")
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(self, *words: str) -> str:
        """Run a program to its end."""
        done = subprocess.run(
            words, cwd=self.home, env=self._environment, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False, **self._as,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run the session daemon."""
        words = ["lttng-sessiond", "--no-kernel"]
        with (
            (self.home / "sessiond.log").open("wb") as log,
            subprocess.Popen(
                words, cwd=self.home, env=self._environment, stdout=log, stderr=log, **self._as
            ) as daemon,
        ):
            try:
                end = time.monotonic() + PATIENCE_S
                while not (self.home / ".lttng/client-lttng-sessiond").exists():
                    assert daemon.poll() is None, (self.home / "sessiond.log").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.05)
                yield
            finally:
                daemon.terminate()
                daemon.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def recorded() -> Iterator[Path]:
    """Record a program as per-uid buffers, in two rotated archives and a rest."""
    home = Path(tempfile.mkdtemp(prefix="lttd-ust-"))
    try:
        (home / "provider.h").write_text(PROVIDER)
        (home / "program.c").write_text(PROGRAM)
        words = ["gcc", "-O1", "-I.", "-o", "program", "program.c", "-llttng-ust", "-ldl"]
        subprocess.run(words, cwd=home, check=True, timeout=PATIENCE_S)
        lttng = Lttng(home)
        with lttng.daemon():
            lttng.run("lttng", "create", "s", f"--output={home}/out")
            channel = ("--buffers-uid", "--subbuf-size=16384", "--num-subbuf=64", "c")
            lttng.run("lttng", "enable-channel", "--userspace", *channel)
            lttng.run("lttng", "enable-event", "--userspace", "--channel=c", "my:*")
            context = ("--type=vpid", "--type=vtid", "--type=procname")
            lttng.run("lttng", "add-context", "--userspace", "--channel=c", *context)
            lttng.run("lttng", "start")
            for _ in range(2):
                lttng.run("./program", "700")
                lttng.run("lttng", "rotate")
            lttng.run("./program", "300")
            lttng.run("lttng", "stop")
            lttng.run("lttng", "destroy")
        yield home / "out"
    finally:
        shutil.rmtree(home)


def test_babeltrace_prints_the_same_of_the_packed_trace(recorded: Path, tmp_path: Path) -> None:
    segment = record(recorded, tmp_path / "t")
    text = assert_reads_the_same(recorded, segment, tmp_path / "copy")
    assert text.count("my:numbers: ") == text.count("my:lists: ") == 1700
    assert text.count("my:nothing: ") == 340
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0


def test_lines_in_babeltrace_style_are_those_of_babeltrace2(
    recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(recorded, tmp_path / "t")
    ours, err = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    assert not err
    assert len(ours) == 3740
    assert_as_babeltrace2(ours, recorded)


def test_fields_are_columns(
    recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(recorded, tmp_path / "t")
    where = 'u64 == 18446744073709551606 and procname == "program"'
    lines, _ = lines_of(capfd, str(tmp_path / "t"), "--where", where)
    assert len(lines) == 3
    assert all(" i8=-9 " in line and line.lstrip().startswith("program-") for line in lines)
