"""Real events in kept windows: none is missing between the true bounds, whatever the disk does."""

import json
import os
import random
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd.errors import LttdError
from lttd.sources.ftrace import instance as ftrace_instance
from tests.live_windows import (
    EVENTS,
    OFTEN,
    InProcess,
    asked,
    assert_windows_are_whole,
    client,
    kept,
    lttd_trigger,
    numbering,
    numbers,
)
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    assert_whole,
    free_port,
    info,
    needs_kernel,
    until,
)
from tests.test_alerts import CAPTURED

pytestmark = needs_kernel(alone=True)

NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
TRIGGERS = 200 if NIGHTLY else 12


async def test_each_window_has_every_event_although_the_disk_hangs(
    lttd: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", f"lttdtest{os.getpid()}kept-")
    trace, judge, chance = tmp_path / "t", tmp_path / "judge", random.Random(7)
    other = await trio.to_thread.run_sync(lambda: lttd.start("-t", judge, *EVENTS, *OFTEN))
    await trio.to_thread.run_sync(other.recording)
    of_run = InProcess("-t", trace, *EVENTS, *OFTEN, "--segment-duration", "300ms")
    taken = 0

    async def trigger() -> None:
        nonlocal taken
        before, after = (f"{chance.randrange(1, 900)}ms" for _ in range(2))
        request = {"before": before, "after": after, "reason": "\x1b[2J"}
        try:
            await trio.to_thread.run_sync(lambda: asked(trace, **request))
        except LttdError as error:
            if "too many" not in str(error):
                raise
        else:
            taken += 1

    with of_run.signals, numbering(), trio.fail_after(PATIENCE_S * (10 if NIGHTLY else 1)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of_run.run)
            await of_run.ready.wait()
            while taken < TRIGGERS:
                await trigger()
                if chance.random() < 0.2:
                    of_run.disk.works.clear()
                    await trio.sleep(chance.random())
                    of_run.disk.works.set()
                await trio.sleep(chance.random() * (2 if NIGHTLY else 0.3))
            os.kill(os.getpid(), signal.SIGTERM)
    assert of_run.status == 0
    assert await trio.to_thread.run_sync(other.end) == 0
    assert len(kept(trace)) == taken
    assert_whole(trace, "--events")
    assert info(trace)["events_lost"] == info(judge)["events_lost"] == 0
    assert_windows_are_whole(trace, judge)


def posted(port: int, token: str, body: bytes) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/-/trigger?before=1s&after=10ms"
    fields = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, body, fields)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        value: dict[str, Any] = json.loads(answer.read())
    return value


def alert_of_now() -> bytes:
    """Return the captured body as if its alert had begun just now."""
    body = json.loads(CAPTURED)
    done = subprocess.run(["date", "-u", "+%FT%T.%NZ"], capture_output=True, text=True, check=True)
    for alert in body["alerts"]:
        alert["startsAt"] = done.stdout.strip()
    return json.dumps(body).encode()


def test_an_alert_is_kept_once_also_over_a_kill_and_a_restart(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port, token = tmp_path / "t", free_port(), tmp_path / "token"
    token.write_text("sekret-token\n")
    token.chmod(0o600)
    options = ["-t", trace, *QUIET, *OFTEN, "--append", "--metrics", f"127.0.0.1:{port}"]
    options += ["--web-enable-trigger", "--web-token-file", token]
    run = lttd.start(*options).recording()
    body = alert_of_now()
    assert until_answered(port, body)["accepted"] == [1]
    assert [one.reason for one in kept(trace)] == ["LttdLoss"]
    run.signal(signal.SIGKILL)
    run.process.wait()
    run = lttd.start(*options).recording()
    answer = until_answered(port, body)
    assert (answer["accepted"], answer["known"]) == ([], 1)
    assert run.end() == 0
    assert [one.number for one in kept(trace)] == [1]


def posted_or_none(port: int, body: bytes) -> dict[str, Any] | None:
    try:
        return posted(port, "sekret-token", body)
    except OSError:  # it does not listen yet, or is not ready
        return None


def until_answered(port: int, body: bytes) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []

    def answered() -> bool:
        answer = posted_or_none(port, body)
        answers.extend([answer] if answer else [])
        return bool(answers)

    until(answered, "an answer")
    return answers[-1]


def test_a_reload_takes_over_the_token_and_turns_triggers_by_http_off(
    lttd: Launcher, tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "lttd.toml"
    for name in ("sekret-token", "other-token"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    on = f'web-enable-trigger = true\nweb-token-file = "{tmp_path}/'
    file.write_text(f'{on}sekret-token"\n')
    trace = tmp_path / "t"
    options = ["-t", trace, *QUIET, *OFTEN, "--metrics", f"127.0.0.1:{port}", "--config", file]
    run = lttd.start(*options).recording()
    body = alert_of_now()
    until_answered(port, body)

    def reloaded(text: str) -> str:
        file.write_text(text)
        return client(run, "reload", trace).stdout

    def status(token: str) -> int:
        try:
            return 200 if posted(port, token, body)["ok"] else 0
        except urllib.error.HTTPError as error:
            return error.code

    assert reloaded(f'{on}other-token"\n') == "reloaded: web-token-file\n"
    assert [status(token) for token in ("sekret-token", "other-token")] == [401, 200]
    assert reloaded(f'{on}missing"\n') == ""
    assert status("other-token") == 200
    assert reloaded("") == "reloaded: web-enable-trigger, web-token-file\n"
    assert status("other-token") == 403
    assert run.end() == 0


def test_a_window_that_a_kill_cuts_is_completed_by_the_next_start(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with numbering():
        run = lttd.start("-t", trace, *EVENTS, *OFTEN).recording()
        until(lambda: numbers(trace), "some events")
        request = lttd_trigger(run, trace, "--before", "10s", "--after", "1h", "--no-wait")
        assert request.returncode == 0, request.stderr
        (one,) = kept(trace)
        assert not one.complete
        run.signal(signal.SIGKILL)
        run.process.wait()
    run = lttd.start("-t", trace, *QUIET, *OFTEN, "--append").recording()
    until(lambda: kept(trace)[0].complete, "the window", lambda: kept(trace))
    (one,) = kept(trace)
    assert "a kill" in one.note
    assert run.end() == 0
    assert numbers(trace, 1)
    assert_whole(trace)


def test_the_command_and_the_signal_return_true_bounds(lttd: Launcher, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, *QUIET, *OFTEN).recording()
    done = lttd_trigger(run, trace, "--before", "1h", "--after", "10ms", "--reason", "deploy")
    assert done.returncode == 0, done.stderr
    assert "is kept; the trace reached back" in done.stdout
    run.signal(signal.SIGUSR2)
    until(lambda: len(kept(trace)) == 2, "the trigger of the signal", lambda: kept(trace))
    assert run.end() == 0
    assert [one.by for one in kept(trace)] == ["command", "signal"]
    assert "recording ended" in kept(trace)[1].note
    assert lttd_trigger(run, trace).returncode == 77
