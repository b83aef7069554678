"""The arena returns the memory of a burst to the kernel."""

from lttd.subbuffer import SLOT_BYTES, BufferPool

SLOTS = 16


def use(pool: BufferPool, count: int) -> list[memoryview]:
    """Take *count* buffers of one slot at the same time, and fill them."""
    taken = [pool.take() for _ in range(count)]
    for buffer in taken:
        buffer[:] = b"\1" * SLOT_BYTES
    return taken


def touched(pool: BufferPool) -> int:
    """Return the number of slots that hold what was written; those without memory are zeros."""
    arena = pool._arena
    return sum(arena[at] for at in range(0, len(arena), SLOT_BYTES))


def test_memory_that_only_a_burst_used_is_given_back_after_two_calls() -> None:
    pool = BufferPool(SLOTS * SLOT_BYTES, take_bytes=SLOT_BYTES)
    for buffer in use(pool, SLOTS):
        pool.give(buffer)
    for expected in (SLOTS, SLOTS, 3, 3):
        pool.give_back()
        assert touched(pool) == expected
        for buffer in use(pool, 3):
            pool.give(buffer)
    for buffer in use(pool, SLOTS):
        pool.give(buffer)
    assert touched(pool) == SLOTS


def test_a_buffer_that_is_held_keeps_its_content() -> None:
    pool = BufferPool(SLOTS * SLOT_BYTES, take_bytes=SLOT_BYTES)
    *others, held = use(pool, SLOTS)
    for buffer in others:
        pool.give(buffer)
    for _ in range(4):
        pool.give_back()
        assert bytes(held) == b"\1" * SLOT_BYTES
    pool.give(held)
    for _ in range(3):
        pool.give_back()
    assert touched(pool) == 0


def test_a_take_may_ask_for_more_than_is_wanted_and_gets_what_is_free() -> None:
    pool = BufferPool(4 * SLOT_BYTES, take_bytes=SLOT_BYTES)
    assert len(pool.take(2 * SLOT_BYTES)) == 2 * SLOT_BYTES
    assert len(pool.take()) == SLOT_BYTES
    assert len(pool.take(2 * SLOT_BYTES)) == SLOT_BYTES


def test_a_sub_buffer_that_is_larger_than_a_take_gets_memory_of_its_own() -> None:
    pool = BufferPool(SLOTS * SLOT_BYTES, take_bytes=SLOT_BYTES)
    assert len(pool.take_at_least(SLOT_BYTES)) == SLOT_BYTES
    assert len(pool.take_at_least(SLOT_BYTES + 1)) == SLOT_BYTES + 1
    use(pool, SLOTS - 1)
    assert touched(pool) == SLOTS - 1, "it keeps no slot"


def test_a_pool_without_an_arena_has_nothing_to_give_back() -> None:
    pool = BufferPool()
    pool.give(pool.take())
    pool.give_back()
