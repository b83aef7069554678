"""Open the servers of a run: the metrics port and the control socket.

Both answer on the reading loop.  Without ``--metrics``, nothing that knows HTTP is loaded.
"""

import time
from contextlib import ExitStack
from typing import Final

import trio

from lttd.config import Config
from lttd.control import Control
from lttd.control_socket import ControlSocket
from lttd.errors import LttdError, NothingToRecordError, UsageError
from lttd.health import Health
from lttd.inherited import take_sockets
from lttd.reloading import Taker
from lttd.state import RunState
from lttd.status import Observer
from lttd.terminal import Level, say
from lttd.token_file import read_token
from lttd.trigger import Accept
from lttd.version import VERSION

NO_ADDRESS: Final = ":0"


async def serve_metrics(
    nursery: trio.Nursery,
    config: Config,
    observer: Observer,
    health: Health,
    state: RunState,
    accept: Accept,
) -> dict[str, Taker]:
    """Serve metrics and page, if ``--metrics`` was given or systemd passes a socket for it.

    *accept* accepts a trigger that is posted there.  Return what a reload takes over.

    Such a socket takes the place of the address.

    Raises:
        UsageError: the address or the socket cannot be used.
    """
    inherited = take_sockets()
    if config.metrics is None and not inherited:
        if config.web_enable_trigger:
            raise UsageError("web-enable-trigger needs a port: --metrics 127.0.0.1:9469")
        return {}
    from lttd.endpoint import Endpoint, open_listeners, parse_address  # noqa: PLC0415
    from lttd.hosts import plain_name  # noqa: PLC0415
    from lttd.metrics import make_render  # noqa: PLC0415
    from lttd.page import make_pages  # noqa: PLC0415
    from lttd.webhook import PATH, Webhook  # noqa: PLC0415

    address = parse_address(config.metrics or NO_ADDRESS)
    if inherited:
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in inherited
        ]
    else:
        listeners = await open_listeners(address)
    render = make_render(observer, version=VERSION)
    # If --metrics has a name of this machine, requests may use that name.
    bound = {plain_name(address.host or "localhost")}
    webhook = Webhook(_token_of(config), accept, time.time_ns)
    names = config.web_allow_hosts | bound
    endpoint = Endpoint(render, health.verdict, names, make_pages(state.to_json), {PATH: webhook})
    await nursery.start(endpoint.serve, listeners)
    allow = Taker(lambda new: endpoint.allow_hosts(new.web_allow_hosts | bound))
    checked: list[bytes | None] = []

    def check_token(new: Config) -> None:
        checked[:] = [_token_of(new)]

    def take_token(_: Config) -> None:
        (webhook.token,) = checked

    token = Taker(take_token, check_token)
    return {"web_allow_hosts": allow, "web_enable_trigger": token, "web_token_file": token}


def _token_of(config: Config) -> bytes | None:
    return read_token(config.web_token_file) if config.web_token_file else None


async def serve_control(
    nursery: trio.Nursery, stack: ExitStack, control: Control, name: str
) -> None:
    """Serve the control socket called *name* in *nursery*; *stack* removes it.

    The caller holds the lock of its trace.

    A run without a control socket records all the same, and is healthy: its clients say what is
    missing, and so does one line here.
    """
    try:
        opened = ControlSocket(name)
    except NothingToRecordError:
        return  # this user has no runtime directory, and no source needed one
    except LttdError as error:
        say(f"no control socket: {error}", Level.WARNING)
        return
    stack.callback(opened.close)
    for note in opened.notes:
        say(note, Level.WARNING)
    await nursery.start(control.serve, opened.listening)
