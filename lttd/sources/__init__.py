"""Adapters to the kernel's trace buffers: synchronous, non-blocking, no trio, nothing written."""
