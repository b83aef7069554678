"""lttd's version, in the one place that packaging and programs read."""

from typing import Final

VERSION: Final = "0.1.0"
