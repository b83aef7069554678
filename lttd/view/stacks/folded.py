"""Write stacks in the folded form: ``outermost;...;innermost COUNT``, a line for each.

    bash;entry_SYSCALL_64_after_hwframe;do_syscall_64;ksys_read;vfs_read 17

Source: Brendan Gregg's stackcollapse-perf.pl and flamegraph.pl; speedscope reads it, too.

Rule: a semicolon in a name would begin a frame, so it becomes a colon; control characters are
escaped.  Equal lines are one.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lttd.terminal import printable
from lttd.view.stacks.samples import Stack

NameOf = Callable[[int], bytes]
UserNameOf = Callable[[int, int, int], bytes]
"""Called with the process, the address, and 1 if it is the one after a call, else 0."""


class Frame(NamedTuple):
    """A function, or a word before all functions."""

    name: str
    kind: str
    """``by``, ``user`` or ``kernel``."""


Folded = dict[tuple[Frame, ...], int]
"""The weight of each stack, its outermost frame first."""


def fold(counts: Mapping[Stack, int], kernel: NameOf, user: UserNameOf) -> Folded:
    """Name the functions of stacks; those with the same names become one."""
    kernel_frames: dict[int, Frame] = {}
    user_frames: dict[tuple[int, int, int], Frame] = {}

    def of_kernel(address: int) -> Frame:
        found = kernel_frames.get(address)
        if found is None:
            found = kernel_frames[address] = Frame(_text(kernel(address)), "kernel")
        return found

    def of_user(*key: int) -> Frame:
        process, address, after = key
        found = user_frames.get((process, address, after))
        if found is None:
            found = user_frames[process, address, after] = Frame(
                _text(user(process, address, after)), "user"
            )
        return found

    folded: Folded = {}
    for stack, weight in counts.items():
        frames = [Frame(printable(word).replace(";", ":"), "by") for word in stack.by]
        inner = list(enumerate(stack.user))
        frames += [of_user(stack.process, address, int(at > 0)) for at, address in reversed(inner)]
        frames += map(of_kernel, reversed(stack.kernel))
        key = tuple(frames)
        folded[key] = folded.get(key, 0) + weight
    return folded


def _text(name: bytes) -> str:
    return printable(name.decode(errors="replace")).replace(";", ":")


def lines_of(folded: Folded) -> list[str]:
    """Return the lines, in the order of their names."""
    return sorted(
        f"{';'.join(frame.name for frame in frames)} {weight}"
        for frames, weight in folded.items()
        if weight > 0
    )
