"""A progress bar on the terminal, and the curve of a run as JSON lines that survive it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """Shows progress and appends one JSON line every `every` steps.

    Args:
        path: the curve; lines of an earlier run before `first` stay, later ones go.
        name: shown beside the bar.
        total: steps of the whole run.
        first: where a resumed run goes on.
    """

    def __init__(self, path: Path, name: str, *, total: int, first: int = 0, every: int = 20) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(path, first)
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)
        self._every, self._started = every, time.monotonic()
        self._bar = tqdm(total=total, initial=first, desc=name, file=sys.stderr, mininterval=2)

    def step(self, step: int, **values: float) -> None:
        """Record a step's values; written every `every` steps."""
        self._bar.update(1)
        if step % self._every == 0:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            self.note(step, **values)

    def note(self, step: int, **values: float) -> None:
        """Record values now, whatever the interval."""
        seconds = round(time.monotonic() - self._started, 1)
        self._file.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End the bar and the file."""
        self._bar.close()
        self._file.close()


def _lines_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
