"""One defect that ``lttv check`` found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# One bad byte can make many entries wrong; more lines than this per reason and stream do not help.
MOST_FINDINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect, with file and offset."""

    path: Path
    offset_bytes: int
    reason: str
    entry: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}: " + (f"entry {self.entry}, " if self.entry is not None else "")
        return f"{where}byte {self.offset_bytes}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as an object of the JSON report."""
        return {
            "file": str(self.path),
            "offset_bytes": self.offset_bytes,
            "entry": self.entry,
            "reason": self.reason,
        }
