"""Record stacks and set options of tracefs, on this kernel; compare the text with the kernel's."""

from contextlib import closing
from pathlib import Path

import pytest

from lttd.errors import UsageError
from lttd.sources.base import When
from lttd.sources.ftrace.modules import hides_symbols
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource, open_ftrace
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import QUIET, instance_of
from tests.running import needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]


def opened(**settings: object) -> FtraceSource:
    return open_ftrace(QUIET._replace(**settings), BufferPool())  # type: ignore[arg-type]


def option(path: Path, name: str) -> str:
    return (path / "options" / name).read_text().strip()


def test_stacks_are_options_of_the_instance_and_off_by_themselves() -> None:
    with closing(opened(stack=True, user_stack=True)) as source:
        path = instance_of(source)
        assert (option(path, "stacktrace"), option(path, "userstacktrace")) == ("1", "1")
        assert source.info.settings["stack"] is True
    with closing(opened()) as source:
        assert option(instance_of(source), "stacktrace") == "0"
        assert "stack" not in source.info.settings


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("func_stack_trace", "func_stack_trace", "1"),
        ("irq-info=off", "irq-info", "0"),
        ("noirq-info", "irq-info", "0"),
        ("norecord-tgid=no", "record-tgid", "1"),
    ],
)
def test_an_option_has_the_value_that_was_asked_for(text: str, name: str, value: str) -> None:
    with closing(opened(option=(text,))) as source:
        assert option(instance_of(source), name) == value
        assert source.info.settings["option"] == [text]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("irq-inof",), r"option 'irq-inof': this kernel has none .* did you mean irq-info\?"),
        (("x",), r"option 'x': this kernel has none of this name here; see /.*/options"),
        (("markers=3",), r"option markers: '3' is neither yes nor no"),
        (("markers", "nomarkers"), r"option markers is asked for with both values"),
        (("stacktrace",), r"option stacktrace: write stack instead"),
        (("nooverwrite",), r"option overwrite: write overwrite instead"),
        (("../trace_clock",), r"option '\.\./trace_clock': this kernel has none"),
    ],
)
def test_an_impossible_option_is_refused_in_one_line(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        opened(option=texts)


def test_in_a_foreign_instance_options_are_put_back(foreign: Path) -> None:
    (foreign / "options/stacktrace").write_text("1")
    settings = FtraceSettings(foreign.name, stack=False, user_stack=True, option=("noirq-info",))
    with closing(open_ftrace(settings, BufferPool())):
        names = ("stacktrace", "userstacktrace", "irq-info")
        assert [option(foreign, name) for name in names] == ["0", "1", "0"]
    assert [option(foreign, name) for name in names] == ["1", "0", "1"]


def test_symbols_are_kept_where_somebody_else_has_stacks_stored(foreign: Path) -> None:
    for value, kept in (("1", True), ("0", False)):
        (foreign / "options/stacktrace").write_text(value)
        with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
            names = {each.name for each in source.attachments()(When.OPEN)}
        assert ("tracefs/kallsyms" in names) is kept


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (b"", True),
        (b"0000000000000000 A fixed_percpu_data\n0000000000000000 T _text\n", True),
        (b"0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n", False),
    ],
)
def test_symbols_whose_addresses_are_all_zero_are_hidden(
    tmp_path: Path, text: bytes, hidden: bool
) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(text)
    assert hides_symbols(str(path)) is hidden
    assert hides_symbols(str(tmp_path / "nosuch"))
