"""`ltdi`: one command whose subcommands are found by entry point, so that it imports no other package."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires

from ltdi.bundle import library_version
from ltdi.config import nearest
from ltdi.errors import BundleNotFound, DataMissing, InvalidInput, LtDiError

GROUP = "ltdi.commands"
FAULT, MISTAKE, INTERRUPTED = 1, 2, 130
USER_MISTAKES = (InvalidInput, BundleNotFound, DataMissing)
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "multipart": "python-multipart"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ltdi COMMAND ...`.

    Args:
        argv: the arguments after `ltdi`; the process's own where absent.

    Returns:
        The exit code: 0, 1 for a fault, 2 for a user's mistake, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if first in ("-h", "--help", "help"):
        print(overview(commands))
        return 0
    if first in ("-V", "--version"):
        print(f"ltdi {library_version()}")
        return 0
    if first not in commands:
        return _fail(f"unknown command {first!r}; {nearest(first, sorted(commands))}", MISTAKE)
    return run(commands[first], arguments[1:])


def run(command: EntryPoint, arguments: list[str]) -> int:
    """Run one subcommand; errors become one line and an exit code."""
    try:
        return command.load()(arguments) or 0
    except LtDiError as error:
        return _fail(str(error), MISTAKE if isinstance(error, USER_MISTAKES) else FAULT)
    except ImportError as error:
        if not _is_foreign(error):
            raise
        return _fail(f"`ltdi {command.name}` {missing(error)}", FAULT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def overview(commands: dict[str, EntryPoint]) -> str:
    """The help page: each command with the first line of its docstring."""
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {_summary(commands[name])}" for name in sorted(commands)]
    head = ["usage: ltdi COMMAND [options]", "", "Weights on demand: classifier heads from a few examples.", ""]
    return "\n".join([*head, *lines, "", "`ltdi COMMAND --help` explains one; `ltdi --version` says which this is."])


def _summary(command: EntryPoint) -> str:
    try:
        return (command.load().__doc__ or "").strip().split("\n")[0]
    except ImportError as error:
        return f"(not available: {missing(error)})"


def missing(error: ImportError) -> str:
    """What does not import, and which extra of this distribution brings it."""
    module = (error.name or "").split(".")[0]
    for requirement in _requirements():
        if _normal(re.split(r"[^\w.-]", requirement)[0]) == _normal(DISTRIBUTIONS.get(module, module)):
            extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
            target = f"ltdi[{extra[1]}]" if extra else "ltdi"
            return f"needs the package {module!r}, which is missing: pip install '{target}'"
    return f"does not import: {error}"


def _is_foreign(error: ImportError) -> bool:
    """Whether a package of others is absent, and not a name inside one of ours misspelt."""
    return isinstance(error, ModuleNotFoundError) and "." not in (error.name or ".")


def _requirements() -> list[str]:
    try:
        return requires("ltdi") or []
    except PackageNotFoundError:
        return []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
