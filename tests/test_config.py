"""What the command line and the TOML file ask for, and how they refuse what cannot be."""

from pathlib import Path

import pytest

from lttd.config import (
    Config,
    SourceSpec,
    argument_parser,
    parse_bytes,
    parse_command_line,
    parse_duration_s,
    parse_spec,
)
from lttd.errors import UsageError


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
def test_an_unknown_kind_is_refused_with_the_known_ones(text: str) -> None:
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


def test_the_default_is_an_own_ftrace_instance() -> None:
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
    assert config.sources == (SourceSpec("ftrace", None, {"events": "sched:*"}),)


def test_options_of_the_line_win_over_the_spec_and_the_spec_over_the_file(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text('trace-dir = "t"\nclock = "boot"\nevents = "irq:*"\n')
    line = ["--config", str(toml), "--source", "ftrace,clock=mono", "--events", "sched:*"]
    (source,) = parse_command_line(line).sources
    assert source.options == {"clock": "mono", "events": "sched:*"}


def test_source_tables_name_their_kind(tmp_path: Path) -> None:
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
        (["-t", "x", "--backlog", "1K"], "at least 1M"),
        (["-t", "x", "--buffer-size"], "--buffer-size: expected one argument"),
        (["-t", "x", "--duration", "soon"], "duration 'soon' is no duration: write 100ms"),
        (["-t", "x", "make", "all"], "make all; a COMMAND goes behind '--'"),
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
def test_what_cannot_be_is_one_line_that_says_what_to_write(
    arguments: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text("flush = 3\n")
    with pytest.raises(UsageError, match="'flush' is no option"):
        parse_command_line(["-t", "x", "--config", str(toml)])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("duration = [1]", r"duration \[1\] is no duration"),
        ('verbose = "very"', "verbose 'very': write 0 or 1"),
        ('append = "maybe"', "append 'maybe' is neither yes nor no"),
        ("trace-dir = 3", "trace-dir 3: write the path"),
        ('layout = "tight"', "layout 'tight': write packed or sparse"),
        ("backlog = 1000", "backlog 1000: at least 1M"),
        ("priority = 100", "priority '100': from 1 to 99"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_key(tmp_path: Path, line: str, says: str) -> None:
    toml = tmp_path / "lttd.toml"
    toml.write_text(f"{line}\n")
    with pytest.raises(UsageError, match=says):
        parse_command_line(["--config", str(toml)])


def test_every_long_option_has_a_key_of_its_name(tmp_path: Path) -> None:
    toml = tmp_path / "lttd.toml"
    values = {
        "trace-dir": '"t"', "source": '"ftrace"', "append": "true", "duration": '"1s"',
        "summary": '"none"', "daemon": "true", "verbose": "1", "events": '["sched:*"]',
        "buffer-size": '"1M"', "subbuffer-size": '"8K"', "clock": '"boot"', "overwrite": "false",
        "trace-self": "true", "kallsyms": "true", "layout": '"sparse"', "flush-interval": '"1s"',
        "backlog": '"8M"', "on-write-error": '"stop"', "priority": "1", "metrics": '":9469"',
    }  # fmt: skip
    toml.write_text("".join(f"{key} = {value}\n" for key, value in values.items()))
    config = parse_command_line(["--config", str(toml)])
    assert (config.append, config.daemon, config.layout) == (True, True, "sparse")
    assert config.sources[0].options["overwrite"] is False
    toml.write_text('trace-dir = "t"\nchannel-root = "/d"\n')
    assert parse_command_line(["--config", str(toml)]).sources == (SourceSpec("ltt", "/d"),)
    options = {option for action in argument_parser()._actions for option in action.option_strings}
    long_ones = {option[2:] for option in options if option.startswith("--")}
    no_keys = {"help", "version", "config", "no-overwrite"}
    assert long_ones - no_keys == {*values, "channel-root"}


def test_legacy_letters_keep_their_meaning() -> None:
    config = parse_command_line(["-t", "x", "-c", "/d/ltt/t", "-f", "-N", "4", "-a", "-d", "-v"])
    assert config.sources == (SourceSpec("ltt", "/d/ltt/t", {"channels": "flight"}),)
    assert (config.append, config.daemon, config.verbose) == (True, True, 1)
    assert "without effect" in config.notes[0] or "no effect" in config.notes[0]
