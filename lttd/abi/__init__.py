"""Byte layouts of the kernel's trace buffers: pure, no files, no clocks."""
