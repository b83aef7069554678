"""Build the Debian package; install, upgrade, remove and purge it under systemd in the guest."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lttd.tracedir import segments
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.image import CHECKOUT

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

PRELUDE = r"""
set -e
export DEBIAN_FRONTEND=noninteractive
instances=/sys/kernel/tracing/instances
show() { systemctl show --value --property "$1" lttd; }
marks() {  # FIRST LAST
    for n in $(seq "$1" "$2"); do
        printf 'mark %08d\n' $n > $(echo $instances/lttd-*)/trace_marker
    done
}
install() { dpkg --force-unsafe-io --install "$PACKAGES/$1" > $OUT/dpkg.log 2>&1 || fail; }
fail() { cat $OUT/dpkg.log; exit 1; }
"""
# The guest has the files of this machine, where services may be forbidden to start.
FIRST = "rm -rf /usr/sbin/policy-rc.d /run/systemd/system/lttd.*; systemctl daemon-reload\n"


def built(directory: Path) -> Path:
    """Build the package from the files of this checkout that git knows or would add."""
    for tool in ("dpkg-buildpackage", "dh"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: apt-get install debhelper")
    tree = directory / "tree"
    tree.mkdir()
    words = ["git", "-C", str(CHECKOUT), "ls-files", "-co", "--exclude-standard", "-z"]
    for name in subprocess.run(words, capture_output=True, check=True).stdout.split(b"\0"):
        source = CHECKOUT / name.decode()
        if name and source.is_file():
            target = tree / name.decode()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    words = ["dpkg-buildpackage", "-us", "-uc", "-b"]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (package,) = directory.glob("lttd_*.deb")
    return package


def with_version(package: Path, version: str, target: Path) -> None:
    """Pack the same files as another version."""
    tree = target.with_suffix(".tree")
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(
        re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.M)
    )
    subprocess.run(["dpkg-deb", "-Zgzip", "--build", tree, target], check=True, capture_output=True)
    shutil.rmtree(tree)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, systemd_guest: Guest) -> str:
    """Put two versions of the package where the guest sees them; return that directory's name."""
    package = built(tmp_path_factory.mktemp("package"))
    place = systemd_guest.share / "packages"
    place.mkdir()
    shutil.copy(package, place / "old.deb")
    with_version(package, "99", place / "new.deb")
    return "/out/packages"


def test_the_package_installs_records_survives_an_upgrade_and_leaves_nothing(
    packages: str, systemd_guest: Guest
) -> None:
    script = f"""
    PACKAGES={packages}
    {FIRST}
    install old.deb
    show ActiveState; systemctl is-enabled lttd; systemctl is-enabled lttd.socket || true
    stat -c '%a %U:%G' /var/lib/lttd /run/lttd /etc/lttd/lttd.toml
    lttd doctor --config /etc/lttd/lttd.toml > $OUT/doctor
    lttd doctor --json --config /etc/lttd/lttd.toml --trace-dir /var/lib/lttd/trace > $OUT/json
    marks 1 20
    first=$(show MainPID)
    sed -i 's/^#backlog.*/backlog = "32M"/' /etc/lttd/lttd.toml
    install new.deb
    [ "$(show MainPID)" != "$first" ] && show ActiveState
    grep backlog /etc/lttd/lttd.toml
    marks 21 40
    lttv info /var/lib/lttd/trace > $OUT/info
    dpkg --remove lttd > $OUT/remove.log 2>&1
    show ActiveState; ! ls -d $instances/lttd-* 2> /dev/null
    ls /etc/lttd /usr/lib/lttd 2>&1 || true
    cp -r /var/lib/lttd/trace $OUT/trace
    journalctl -u lttd --no-pager > $OUT/journal
    dpkg --purge lttd > $OUT/purge.log 2>&1
    ls -d /etc/lttd /var/lib/lttd /run/lttd /usr/lib/lttd /usr/bin/lttd 2> /dev/null || echo purged
    """
    result = systemd_guest.run(PRELUDE + script, 900).expect(0)
    lines = result.output.splitlines()
    assert lines[:3] == ["active", "enabled", "disabled"]
    assert lines[3:6] == ["750 root:lttd", "750 root:lttd", "644 root:root"]
    assert lines[6:8] == ["active", 'backlog = "32M"']
    assert lines[8] == "inactive"
    assert lines[9:] == [
        "ls: cannot access '/usr/lib/lttd': No such file or directory",
        "/etc/lttd:",
        "lttd.toml",
        "purged",
    ]
    doctor = (result.out_dir / "doctor").read_text()
    assert "A recording would work here: 0 bad" in doctor
    assert re.search(r"ok +poll ", doctor)
    assert re.search(r"ok +readers +nobody but lttd, of lttd-\d+$", doctor, re.MULTILINE)
    found = segments(result.out_dir / "trace")
    assert len(found) == 2
    for segment in found:
        report = check(segment, events=True)
        assert [str(finding) for finding in report.findings] == []
        assert report.state == "closed"
    data = b"".join(path.read_bytes() for each in found for path in each.streams.glob("ftrace_*"))
    marks = sorted(int(number) for number in re.findall(rb"mark (\d{8})\n", data))
    assert marks == list(range(1, 41))
