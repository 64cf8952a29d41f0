"""The command line: `rfkernels COMMAND`, or `python -m rfkernels COMMAND`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from types import FrameType

import click

import rfkernels
from rfkernels.cli import advise, attend, bench, demo, doctor, softmax

__all__ = ["commands", "run"]

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rfkernels.__version__, prog_name="rfkernels", message="%(prog)s %(version)s")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show the traceback of an unexpected failure.")
@click.pass_context
def commands(context: click.Context, show_traceback: bool) -> None:
    """Random-feature attention in linear time, and how far it is from exact attention.

    \b
    Example: rfkernels demo

    The exit status is 0 if all went well, 2 if the arguments or the files given cannot be used or a package is missing,
    and 1 for any other failure.
    """  # noqa: D301 - \b keeps click from joining lines
    context.find_root().meta["traceback"] = show_traceback


for _command in (demo.demo, advise.advise, attend.attend, softmax.softmax, bench.bench, doctor.doctor):
    commands.add_command(_command)


def run() -> None:
    """Run the command that the arguments name; what no command foresaw is one line on stderr and exit status 1."""
    _require_output()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        commands(prog_name="rfkernels")
    except Exception as error:  # noqa: BLE001 - the last resort of the program
        if "--traceback" in sys.argv:
            traceback.print_exc()
        print(f"Error: {_said(error)}", file=sys.stderr)
        sys.exit(1)


def _require_output() -> None:
    """Refuse to run with standard output closed, where results would be lost in silence; errors may be lost."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the program
    if sys.stdout is None:
        print("Error: standard output is closed; it may be /dev/null", file=sys.stderr)
        sys.exit(1)


def _said(error: Exception) -> str:
    """Return what is said of a failure: a full disk or memory is no fault of the program."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"cannot write {error.filename or 'the output'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error}".removesuffix(": ")
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    hint = "`rfkernels --traceback ...` shows where; please report it with what `rfkernels doctor` prints."
    return f"unexpected failure: {reason}\n{hint}"


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Leave through SystemExit, so that unfinished files are removed."""
    sys.exit(128 + number)
