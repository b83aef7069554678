"""Source ``lttng``: sessions of lttng-modules, driven through /proc/lttng."""
