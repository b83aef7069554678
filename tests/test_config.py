"""Parse the command line and the TOML file; refuse impossible values in one line."""

import json
import os
import re
import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lttd.arguments import argument_parser
from lttd.config import _KNOWN, Config, SourceSpec, parse_command_line, parse_spec
from lttd.errors import UsageError
from lttd.parsers import parse_bytes, parse_duration_s, parse_list, parse_texts
from lttd.sources.registry import parsed_options
from lttd.sources.table import SOURCES


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ftrace", SourceSpec("ftrace")),
        ("ftrace:/", SourceSpec("ftrace", "/")),
        (
            "ftrace,events=sched:*,irq:*,buffer-size=4M",
            SourceSpec("ftrace", None, {"events": "sched:*,irq:*", "buffer-size": "4M"}),
        ),
        ("replay:/a:b,c", SourceSpec("replay", "/a:b,c")),
        (r"replay:/a\,abi=x,abi=ftrace", SourceSpec("replay", "/a,abi=x", {"abi": "ftrace"})),
    ],
)
def test_a_comma_begins_a_key_only_before_a_name_and_an_equals_sign(
    text: str, spec: SourceSpec
) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize("text", ["", "disk:/dev/sda", "ftracex", "ftrace;x", ":x"])
def test_an_unknown_kind_is_refused_with_a_list_of_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="ftrace, blktrace, relay, replay"):
        parse_spec(text)


def test_sizes_and_durations_have_the_usual_units() -> None:
    assert [parse_bytes(t) for t in ("4096", "64K", "4M", "1GiB", "2 kB")] == [
        4096,
        64 << 10,
        4 << 20,
        1 << 30,
        2 << 10,
    ]
    assert [parse_duration_s(t) for t in ("2", "100ms", "1.5s", "2m")] == [2.0, 0.1, 1.5, 120.0]
    for bad in ("", "4X", "-1", "1e3"):
        with pytest.raises(UsageError):
            parse_bytes(bad)
        with pytest.raises(UsageError):
            parse_duration_s(bad)


def test_the_default_source_is_an_own_ftrace_instance() -> None:
    assert parse_command_line(["-t", "x"]) == Config(Path("x"), (SourceSpec("ftrace"),))


def test_the_command_line_wins_over_the_file_and_lists_replace(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text(
        'trace-dir = "file"\nlayout = "sparse"\nflush-interval = "2s"\nevents = ["irq:*"]\n'
    )
    config = parse_command_line(["--config", str(toml), "-t", "line", "--events", "sched:*"])
    assert (config.trace_dir, config.layout, config.flush_interval_s) == (
        Path("line"),
        "sparse",
        2.0,
    )
    assert config.sources == (SourceSpec("ftrace", None, {"events": ["sched:*"]}),)


def test_options_of_the_line_win_over_the_spec_and_the_spec_over_the_file(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\nclock = "boot"\nevents = "irq:*"\n')
    line = ["--config", str(toml), "--source", "ftrace,clock=mono", "--events", "sched:*"]
    (source,) = parse_command_line(line).sources
    assert source.options == {"clock": "mono", "events": ["sched:*"]}


def test_a_source_table_names_its_kind(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text(
        'trace-dir = "t"\n[[source]]\nkind = "ftrace"\nevents = ["sched:*", "irq:*"]\n'
        '[[source]]\nkind = "replay"\ntarget = "/d"\n'
    )
    ftrace, replay = parse_command_line(["--config", str(toml)]).sources
    assert ftrace.options == {"events": ["sched:*", "irq:*"]}
    assert replay == SourceSpec("replay", "/d")
    assert str(ftrace) == "ftrace,events=sched:*,irq:*"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--trace-dir DIR"),
        (["-t", "x", "--no-such"], "--no-such"),
        (["-t", "x", "-c", "d", "-f", "-n"], "not allowed with"),
        (["-t", "x", "--layout", "tight"], "packed or sparse"),
        (["-t", "x", "--flush-interval", "0"], "from 1ms"),
        (["-t", "x", "--backlog", "1K"], "write at least 1M"),
        (["-t", "x", "--buffer-size"], "--buffer-size: expected one argument"),
        (["-t", "x", "--duration", "soon"], "duration 'soon' is not a valid duration; write 100ms"),
        (["-t", "x", "make", "all"], "make all; write COMMAND after '--'"),
        (["-t", "x", "sleep", "5"], "sleep 5; write COMMAND after '--'"),
        (["statsu"], "statsu; did you mean lttd status? (see lttd --help)"),
        (["triger", "--reason", "x"], "triger --reason x; did you mean lttd trigger?"),
        (["-t", "x", "status"], "status; did you mean lttd status?"),
        (["-t", "x", "--max-siez=1G"], "--max-siez=1G; did you mean --max-size?"),
        (["-t", ""], "trace-dir '': write the path of a directory"),
        (["-t", "x", "--summary", "json:/"], "summary 'json:/': that is a directory"),
        (["-t", "x", "--summary", "xml"], "table, json"),
        (["-t", "x", "--summary", "json", "--", "true"], "json:FILE"),
        (["-t", "x", "--", "/no/such/program"], "/no/such/program"),
        (["-t", "x", "--"], "COMMAND"),
        (["-t", "x", "--config", "/no/such.toml"], "/no/such.toml"),
        (["-t", "x", "--source", "ftrace", "--source", "ftrace:a", "--events", "x"], "events"),
    ],
)
def test_an_invalid_argument_is_refused_in_one_line_with_a_remedy(
    arguments: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text("flush = 3\n")
    with pytest.raises(UsageError, match="'flush' is not an option"):
        parse_command_line(["-t", "x", "--config", str(toml)])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("duration = [1]", r"duration \[1\] is not a valid duration"),
        ('verbose = "very"', "verbose 'very' is not a valid number"),
        ('append = "maybe"', "append 'maybe' is neither yes nor no"),
        ("trace-dir = 3", "trace-dir 3: write the path"),
        ('layout = "tight"', "layout 'tight': write packed or sparse"),
        ("backlog = 1000", "backlog 1000: write at least 1M"),
        ("priority = 100", "priority 100: write a priority from 1 to 99"),
    ],
)
def test_an_invalid_value_of_the_file_is_named_by_its_key(
    tmp_path: Path, line: str, says: str
) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text(f"{line}\n")
    with pytest.raises(UsageError, match=says):
        parse_command_line(["--config", str(toml)])


def test_every_long_option_is_a_key_of_the_file(tmp_path: Path) -> None:
    toml, token = tmp_path / "lttd.toml", tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    values = {
        "trace-dir": '"t"', "source": '"ftrace"', "append": "true", "duration": '"1s"',
        "summary": '"none"', "daemon": "true", "verbose": "1", "events": '["sched:*"]',
        "buffer-size": '"1M"', "subbuffer-size": '"8K"', "clock": '"boot"', "overwrite": "false",
        "preset": '["irq"]',
        "trace-self": "true", "kallsyms": "true", "layout": '"sparse"', "flush-interval": '"1s"',
        "backlog": '"8M"', "on-write-error": '"stop"', "priority": "1", "metrics": '":9469"',
        "web-enable-trigger": "true", "web-token-file": f'"{token}"',
        "web-allow-host": '["a", "b"]', "segment-size": '"20M"', "segment-duration": '"1h"',
            "on-full": '"wait"', "max-rate": '"10M"',
        "max-size": '"200M"', "max-kept-size": '"1G"', "max-age": '"7d"', "min-free": '"2G"',
        "compress": '"zstd:3"', "mode": '"continuous"',
        "event-trigger": '["sched_process_exit: traceoff:1 if pid == 3"]',
        "tracer": '"function"', "function": '["vfs_*"]', "notrace": '["vfs_w*"]',
        "graph-depth": "3",
        "stack": "true", "user-stack": "false", "option": '["sym-userobj=0"]',
        "exclude": '["sched_stat_*"]', "filter": '["sched:*: common_pid != 0"]',
        "pid": "[1, 2]", "comm": '["nginx*"]', "follow-fork": "true", "only-command": "false",
        "markers": "true", "probe": '["p:opens do_sys_openat2 file=+0($arg2):ustring"]',
    }  # fmt: skip
    toml.write_text("".join(f"{key} = {value}\n" for key, value in values.items()))
    config = parse_command_line(["--config", str(toml)])
    assert (config.append, config.daemon, config.layout) == (True, True, "sparse")
    assert config.sources[0].options["overwrite"] is False
    toml.write_text('trace-dir = "t"\nchannel-root = "/d"\n')
    assert parse_command_line(["--config", str(toml)]).sources == (SourceSpec("ltt", "/d"),)
    options = {option for action in argument_parser()._actions for option in action.option_strings}
    long_ones = {option[2:] for option in options if option.startswith("--")}
    no_keys = {"help", "version", "config", "no-overwrite", "no-trace-self"}
    assert long_ones - no_keys == {*values, "channel-root"}


def test_options_of_legacy_lttd_keep_their_meaning() -> None:
    config = parse_command_line(["-t", "x", "-c", "/d/ltt/t", "-f", "-N", "4", "-a", "-d", "-v"])
    assert config.sources == (SourceSpec("ltt", "/d/ltt/t", {"channels": "flight"}),)
    assert (config.append, config.daemon, config.verbose) == (True, True, 1)
    assert "without effect" in config.notes[0] or "no effect" in config.notes[0]


def test_compression_that_has_nothing_to_do_before_the_end_is_said() -> None:
    (note,) = parse_command_line(["-t", "x", "--compress", "zstd"]).notes
    assert note.startswith("compress: without segment-size or a limit")
    for limit in (["--segment-size", "1M"], ["--segment-duration", "1h"], ["--max-size", "1G"]):
        assert parse_command_line(["-t", "x", "--compress", "zstd", *limit]).notes == ()


@pytest.mark.parametrize(
    ("line", "globs"),
    [
        (["--events", "a:*", "--events", "b:*,c:d"], ("a:*", "b:*", "c:d")),
        (["--source", "ftrace,events=a:*,b:*,events=c:*"], ("a:*", "b:*", "c:*")),
        (["--source", "ftrace,events=x:*", "--events", "a:*", "--events", "b:*"], ("a:*", "b:*")),
        ([], ("f:*", "g:*", "h:*")),
    ],
)
def test_a_repeated_list_option_adds_up_and_replaces_the_list_of_the_file(
    tmp_path: Path, line: list[str], globs: tuple[str, ...]
) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\nevents = ["f:*,g:*", "h:*"]\n')
    (source,) = parse_command_line(["--config", str(toml), *line]).sources
    assert parse_list(source.options["events"]) == globs


@pytest.fixture
def key_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a key ``texts`` whose values keep their commas."""
    monkeypatch.setitem(SOURCES["ftrace"].keys, "texts", parse_texts)


@pytest.mark.usefixtures("key_of_texts")
@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("ftrace,texts=a: b, c == 3,clock=mono", ["a: b, c == 3"]),
        (r"ftrace,texts=p:x f a=1\,b=2,texts=q,clock=mono", ["p:x f a=1,b=2", "q"]),
    ],
)
def test_a_repeated_text_keeps_its_commas_in_a_spec(text: str, texts: list[str]) -> None:
    assert parse_spec(text).options == {"texts": texts, "clock": "mono"}


@pytest.mark.usefixtures("key_of_texts")
def test_a_text_with_commas_is_one_text_in_a_file_and_a_list_is_several(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\n[[source]]\nkind = "ftrace"\ntexts = ["a, b", "c=d"]\n')
    (source,) = parse_command_line(["--config", str(toml)]).sources
    assert parse_texts(source.options["texts"]) == ("a, b", "c=d")
    assert parse_texts("a,\n    b") == ("a, b",)


_VALUES = st.text(st.sampled_from("ab,=\\- :"), min_size=1).filter(lambda text: text[-1] != "\\")


@given(st.lists(_VALUES, min_size=1), _VALUES)
def test_a_printed_spec_is_read_as_the_same_spec(texts: list[str], path: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES["ftrace"].keys, "texts", parse_texts)
        spec = SourceSpec("ftrace", path, {"texts": texts, "clock": path})
        assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize("value", ["", " \n ", ["a", ""]])
def test_an_empty_text_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'' is empty"):
        parse_texts(value)


def test_only_globs_are_split_at_commas(tmp_path: Path) -> None:
    line = ["-t", "a,b", "--source", "replay:/c,d", "--source", "relay:/e,f", "-c", "/g,h"]
    config = parse_command_line(line)
    assert config.trace_dir == Path("a,b")
    assert [source.target for source in config.sources] == ["/c,d", "/e,f", "/g,h"]


def test_sources_of_the_line_replace_those_of_the_file(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\nsource = ["replay:/x"]\nchannel-root = "/y"\n')
    both = parse_command_line(["--config", str(toml)]).sources
    assert both == (SourceSpec("replay", "/x"), SourceSpec("ltt", "/y"))
    line = ["--config", str(toml), "-c", "/a", "-c", "/b"]
    assert parse_command_line(line).sources == (SourceSpec("ltt", "/a"), SourceSpec("ltt", "/b"))


def test_repeated_hosts_add_up_and_are_not_split_at_commas() -> None:
    line = ["-t", "x", "--web-allow-host", "A.example", "--web-allow-host", "b"]
    assert parse_command_line(line).web_allow_hosts == {"a.example", "b"}
    with pytest.raises(UsageError, match="web-allow-host 'a,b': write a host's name"):
        parse_command_line(["-t", "x", "--web-allow-host", "a,b"])


def test_a_tilde_expands_to_a_home_directory_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('trace-dir = "~/file"\nsource = ["ltt:~/l"]\n')
    line = ["--config=~/c.toml", "--trace-dir=~/x", "--summary=json:~/s", "--source=replay:~/r"]
    config = parse_command_line([*line, "--source=relay:~/d", "-c~/k"])
    assert config.trace_dir == tmp_path / "x"
    assert config.summary == f"json:{tmp_path}/s"
    targets = [source.target for source in config.sources]
    assert targets == [f"{tmp_path}/r", f"{tmp_path}/d", f"{tmp_path}/k"]
    from_file = parse_command_line(["--config=~/c.toml"])
    assert (from_file.trace_dir, from_file.sources[0].target) == (
        tmp_path / "file",
        f"{tmp_path}/l",
    )
    # An instance name is not a path, and a tilde within a name is an ordinary character.
    assert parse_command_line(["-t./~", "--source", "ftrace:~"]).sources[0].target == "~"
    assert parse_command_line(["-tx~"]).trace_dir == Path("x~")


def test_a_tilde_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'~no-such-user' names no home directory"):
        parse_command_line(["-t", "~no-such-user/x"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("--duration", ["1e400", "nan", "inf", "-1", "9" * 5000, "1." + "0" * 5000, "٣", "99999d"]),
        ("--flush-interval", ["nan", "inf", "1e400", "-1", "9" * 5000, "0", "2h", ""]),
        ("--backlog", ["9" * 5000, "9" * 5000 + "T", "1048576T", "nan", "-1", "1e9", "²", ""]),
        ("--priority", ["²", "9" * 5000, "0", "100", "-1", "1.0", ""]),
    ],
)
def test_an_absurd_number_is_refused_in_one_short_line(name: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(UsageError) as caught:
            parse_command_line(["-t", "x", f"{name}={value}"])
        assert str(caught.value).startswith(name.lstrip("-"))
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("file_type", ["fifo", "device", "directory", "socket", "huge", "sparse"])
def test_a_config_that_is_not_a_small_regular_file_is_refused_at_once(
    tmp_path: Path, file_type: str
) -> None:
    path = tmp_path / "c"
    says = "not a regular file"
    if file_type == "fifo":
        os.mkfifo(path)
    elif file_type == "device":
        path = Path("/dev/zero")
    elif file_type == "directory":
        path.mkdir()
    elif file_type == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(str(path))
        says = "No such device or address"
    else:
        says = "larger than 1 MiB"
        path.write_bytes(b"#" * (1 << 21))
        os.truncate(path, 1 << 40 if file_type == "sparse" else 1 << 21)
    with pytest.raises(UsageError, match=says):
        parse_command_line(["-t", "x", "--config", str(path)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("events = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("events = " + '{"a" = ' * 5000, "nested too deeply"),
        ('events = [["a"]]', "events: nested too deeply"),
        ('events = {a = "b"}', "events: nested too deeply"),
        ('[[source]]\nkind = "ftrace"\nevents = {a = "b"}', "source.events: nested too deeply"),
        ('source = [["ftrace"]]', "nested too deeply"),
        ("[[source]]\nkind = 5", "kind must be one of"),
        ('[[source]]\nkind = "replay"\ntarget = 5', "target 5: write a string"),
        ('trace-dir = "a\\u0000b"', "contains a NUL character"),
        (f"backlog = {'9' * 5000}", r"not TOML: .*value has 5000 digits$"),
        (f"backlog = 0x{'f' * 5000}", "a number of more than 64 bits"),
        ("duration = 1e400", "duration inf is not a valid duration"),
        ("flush-interval = nan", "flush-interval nan is not a valid duration"),
        ("duration = 1979-05-27", "1979-05-27 is a date or time"),
        ("priority = -9223372036854775808", "is not a valid number"),
        ('"a\\nb" = 1', r"'a\\nb' is not an option"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_file_with_an_impossible_value_is_refused_in_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=says) as caught:
        parse_command_line(["-t", "x", "--config", str(toml)])
    assert "\n" not in str(caught.value)


NUMBERS = st.sampled_from(
    ["0", "1", "-1", "1e400", "nan", "inf", "9" * 40, "9" * 5000, "1T", "4K", "\u0663", "\u00b2"]
)
PATHS = st.sampled_from(
    ["", ".", "/", "~", "~/x", "~no-such-user", "x" * 300, "/dev/null", "a\nb", "\udcff", "json:"]
)
SPECS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["ftrace", "replay", "relay", "blktrace", "ltt", "", "x"]),
    st.sampled_from(["", ":", ":\n", ":/", ":~", ":a,b", ",", ",events=", r"\,"]),
    st.sampled_from(["", ",events=a,events=b", ",buffer-size=", ",x=y", ",=", ",abi=\n", "\0"]),
)
WORDS = st.one_of(NUMBERS, PATHS, SPECS, st.text(max_size=20))
LONG_OPTIONS = sorted(
    option
    for action in argument_parser()._actions
    for option in action.option_strings
    if option not in ("-h", "--help", "--version")
)


def parsed_or_refused(arguments: list[str]) -> None:
    """Parse *arguments* as lttd does; only a Config or a UsageError passes."""
    with suppress(UsageError):
        config = parse_command_line(arguments)
        assert all(str(source) for source in config.sources)


@given(st.lists(st.one_of(WORDS, st.tuples(st.sampled_from(LONG_OPTIONS), WORDS)), max_size=6))
def test_every_command_line_is_parsed_or_refused(parts: list[str | tuple[str, str]]) -> None:
    line = [word for part in parts for word in (part if isinstance(part, tuple) else (part,))]
    # --help and --version raise SystemExit on purpose.
    assume(not {"--help", "--version"} & {word.partition("=")[0] for word in line})
    assume(not any(re.match(r"-[adv]*h", word) for word in line))
    parsed_or_refused(["-t", "x", *line])


TOML_VALUES: st.SearchStrategy[str] = st.recursive(
    st.one_of(
        NUMBERS,
        WORDS.filter(lambda word: "\udcff" not in word).map(json.dumps),
        st.sampled_from(["true", "1979-05-27T07:32:00Z", "07:32:00", "-0.0", "0x" + "f" * 5000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda item: f'{{kind = "ftrace", target = {item}, events = {item}}}'),
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(_KNOWN)), TOML_VALUES, max_size=4), st.binary())
def test_every_config_file_is_parsed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, str], garbage: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    lines = "".join(f"{key} = {value}\n" for key, value in options.items())
    path.write_bytes(lines.encode() + garbage[: len(garbage) % 8])
    parsed_or_refused(["-t", "x", "--config", str(path)])
    path.write_bytes(garbage)
    parsed_or_refused(["-t", "x", "--config", str(path)])


def test_ids_and_names_of_tasks_are_lists_everywhere(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\npid = [7, 8]\ncomm = "a*,b"\nfollow-fork = true\n')
    ways = (
        ["--config", str(toml)],
        ["-t", "t", "--pid", "7", "--pid", "8", "--comm", "a*,b", "--follow-fork"],
        ["-t", "t", "--source", "ftrace,pid=7,8,comm=a*,comm=b,follow-fork=yes"],
    )
    for words in ways:
        options = parsed_options(parse_command_line(words).sources[0])
        assert options == {"pid": (7, 8), "comm": ("a*", "b"), "follow_fork": True}
    blktrace = ["-t", "t", "--source", "blktrace:/dev/sda", "--pid", "7"]
    assert parsed_options(parse_command_line(blktrace).sources[0]) == {"pid": 7}
    with pytest.raises(UsageError, match="this source takes one process"):
        parsed_options(parse_command_line([*blktrace, "--pid", "8"]).sources[0])


@pytest.mark.parametrize("pid", ["", "x", "-1", "4194305", "7,,x", "7 8", "0x7"])
def test_what_is_not_the_id_of_a_task_is_refused(pid: str) -> None:
    with pytest.raises(UsageError, match=r"^pid .*[0-9]$|not a valid number"):
        parsed_options(parse_command_line(["-t", "t", f"--pid={pid}"]).sources[0])
