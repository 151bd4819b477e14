"""What is said of a fault, in the log only."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any


def fault_fields(error: BaseException) -> dict[str, Any]:
    """Where an error was raised, for the log; its message is left out, as it may hold a caller's labels.

    An error of another process brings its places along, as `at`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
    return {"error": type(error).__name__, "at": [*getattr(error, "at", []), *at][-12:]}
