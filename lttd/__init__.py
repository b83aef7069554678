"""Consumer daemon and viewer for the Linux kernel's per-CPU trace buffers."""
