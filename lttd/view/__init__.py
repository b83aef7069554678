"""The offline half: opens traces, never a kernel; imports neither trio nor prometheus_client."""
