"""Byte layouts of the kernel's trace buffers: pure functions, without files and clocks."""
