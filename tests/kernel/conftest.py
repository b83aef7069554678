"""The guests, each booted once for the whole session; and the module that some tests load."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.kernel.guest import Guest, Machine
from tests.kernel.image import CHECKOUT, GuestUnavailableError, Kernel, prepare
from tests.kernel.lttng import put_lttng
from tests.kernel.modules import build_module
from tests.kernel.service import INSTALL


def kernel_or_skip(*, systemd: bool = False, suite: str = "") -> Kernel:
    try:
        return prepare(systemd=systemd, suite=suite)
    except GuestUnavailableError as error:
        if os.environ.get("LTTD_GUEST_REQUIRED") == "1":
            raise
        pytest.skip(f"no guest: {error}")


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with pid 1 of our own: two CPUs, a third possible but absent."""
    with Guest.boot(kernel_or_skip(), tmp_path_factory.mktemp("guest")) as running:
        yield running


@pytest.fixture(scope="session")
def trixie_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with the kernel of Debian 13, which is Linux 6.12: for nightly runs."""
    kernel = kernel_or_skip(suite="trixie")
    with Guest.boot(kernel, tmp_path_factory.mktemp("trixie-guest")) as running:
        yield running


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("guest", id="6.1"),
        pytest.param("trixie_guest", id="6.12", marks=pytest.mark.nightly),
    ],
)
def each_guest(request: pytest.FixtureRequest) -> Guest:
    """The guest with Linux 6.1 and, in nightly runs, that with 6.12."""
    found: Guest = request.getfixturevalue(request.param)
    return found


def with_relaytest(guest: Guest) -> Guest:
    """Put the relay module into the share of *guest*, which may not see changes of the cache."""
    assert guest.kernel is not None
    try:
        built = build_module(guest.kernel, CHECKOUT / "tests/kernel/relaytest")
    except GuestUnavailableError as error:
        pytest.skip(f"no relay module: {error}")
    shutil.copy(built, guest.share)
    return guest


@pytest.fixture(scope="session")
def relay_guest(guest: Guest) -> Guest:
    """A guest that can load the relay module, /out/relaytest.ko."""
    return with_relaytest(guest)


@pytest.fixture(scope="session")
def each_relay_guest(each_guest: Guest) -> Guest:
    """Each guest, with the relay module."""
    return with_relaytest(each_guest)


@pytest.fixture(scope="session")
def lttng_guest(each_guest: Guest) -> Guest:
    """Each guest, with lttng-modules."""
    try:
        put_lttng(each_guest)
    except GuestUnavailableError as error:
        pytest.skip(f"no lttng-modules: {error}")
    return each_guest


@pytest.fixture(scope="session")
def systemd_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with systemd as pid 1: a second boot, so only for nightly runs (LTTD_NIGHTLY=1)."""
    if os.environ.get("LTTD_NIGHTLY") != "1":
        pytest.skip("a second boot: only with LTTD_NIGHTLY=1")
    kernel = kernel_or_skip(systemd=True)
    share = tmp_path_factory.mktemp("systemd-guest")
    with Guest.boot(kernel, share, Machine(systemd=True)) as running:
        yield running


@pytest.fixture(scope="session")
def service_guest(systemd_guest: Guest) -> Guest:
    systemd_guest.run(INSTALL, 60).expect(0)
    return systemd_guest
