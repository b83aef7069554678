"""The segments of a store as triggers need them; see ``lttd.triggers.Keeper``.

Rule: a window is not larger than ``--max-kept-size``.  Its begin gives way, because a trigger comes
after its cause; the record says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from lttd.clock import Conversion
from lttd.errors import LttdError, StorageError
from lttd.manifest import Manifest
from lttd.retention import Held, bytes_of
from lttd.stats import human_bytes
from lttd.store import Store
from lttd.trigger import Trigger
from lttd.triggers import Now, joined


class StoreKeeper:
    """Keeps segments of a store."""

    def __init__(self, store: Store, now: Callable[[], Now], began_ns: int) -> None:
        """*began_ns* is when recording began: before, the trace may have a hole."""
        self._store = store
        self._now = now
        self._began_ns = began_ns

    def reach_ns(self) -> int:
        """Return the time since when the trace has everything."""
        return max(self._began_ns, self._store.catalogue.reach_ns())

    def protect(self, begin_ns: int) -> object:
        """Let nothing delete a segment that ends after *begin_ns*."""
        return self._store.catalogue.protect(begin_ns)

    def unprotect(self, token: object) -> None:
        """End a protection."""
        self._store.catalogue.unprotect(cast("int", token))

    def keep(self, begin_ns: int, end_ns: int, trigger: Trigger) -> Trigger:
        """Note *trigger* in the segments of its window; see ``lttd.triggers.Keeper``."""
        self._store.read()
        held = self._store.catalogue.in_window(begin_ns, end_ns)
        limit_bytes = self._store.limits.kept_bytes
        if trigger.complete and limit_bytes is not None:
            fitting = _newest_that_fit(held, limit_bytes)
            if len(fitting) < len(held):
                trigger = self._shortened(trigger, held, fitting, limit_bytes)
                held = fitting
        self._store.keep([one.number for one in held], trigger)
        return trigger

    def _shortened(
        self, trigger: Trigger, held: list[Held], fitting: list[Held], limit_bytes: int
    ) -> Trigger:
        gone = [one.number for one in held if one not in fitting]
        self._store.forget(gone, trigger.number)
        size = f"{human_bytes(bytes_of(held))} are more than --max-kept-size {limit_bytes}"
        if not fitting:
            raise LttdError(f"trigger {trigger.number}: the window's {size}")
        begin_ns = self._now().real_of(max(one.end_ns for one in held if one not in fitting))
        words = f"shortened, because its {size}"
        return replace(
            trigger,
            begin_ns=max(trigger.begin_ns or 0, begin_ns),
            note=joined(trigger.note, words),
        )


def complete_cut_windows(store: Store) -> list[Trigger]:
    """Complete the windows that a kill cut, with what was recorded; return all triggers stored.

    Raises:
        StorageError: a record could not be written.
    """
    store.read()
    stored: dict[int, Trigger] = {}
    kept_by: dict[int, list[Held]] = {}
    for held in store.catalogue.in_order():
        for one in store.catalogue.kept(held.key).triggers:
            kept_by.setdefault(one.number, []).append(held)
            if one.complete or one.number not in stored:
                stored[one.number] = one
    for number, one in stored.items():
        if not one.complete:
            stored[number] = _cut(one, store, kept_by[number])
            try:
                store.keep([held.number for held in kept_by[number]], stored[number])
            except StorageError:
                raise
            except LttdError:
                continue  # the record has no room for the note; the window stays kept
    return list(stored.values())


def _cut(trigger: Trigger, store: Store, held: list[Held]) -> Trigger:
    begin_ns = trigger.asked_begin_ns if trigger.begin_ns is None else trigger.begin_ns
    ends = [end_ns for one in held if (end_ns := _data_end_ns(store, one.name)) is not None]
    end_ns = max(min(max(ends, default=begin_ns), trigger.asked_end_ns), begin_ns)
    note = trigger.note
    if end_ns < trigger.asked_end_ns:
        early_s = (trigger.asked_end_ns - end_ns) / 1e9
        note = joined(note, f"a kill ended the window {early_s:.1f} s early")
    return replace(trigger, begin_ns=begin_ns, end_ns=end_ns, complete=True, note=note)


def _data_end_ns(store: Store, name: str) -> int | None:
    """Return when the first stream of a segment ended, by the wall clock; None: unknown.

    Later the streams that lttd had written last have more, and the others nothing.
    """
    from lttd.stored import StoredStream  # noqa: PLC0415  (after a kill only)

    try:
        paths = store.paths(name)
        manifest = Manifest.read(paths.place(paths.manifest))
        streams = (StoredStream(paths, manifest, record) for record in manifest.streams)
        ends = [ends[1] for stream in streams if (ends := stream.ends()) is not None]
        if not ends or not manifest.clock_snapshots:
            return None
        return Conversion(manifest.clock_snapshots).to_realtime_ns(min(ends))
    except (LttdError, OSError):
        return None


def _newest_that_fit(held: list[Held], limit_bytes: int) -> list[Held]:
    """Return the newest segments of a window that may be kept together, in their order."""
    fitting: list[Held] = []
    for one in reversed(held):
        if bytes_of(fitting) + one.allocated_bytes > limit_bytes:
            break
        fitting.append(one)
    return fitting[::-1]
