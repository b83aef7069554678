"""The offline half: opens traces, never a kernel; loads neither trio nor prometheus_client."""
