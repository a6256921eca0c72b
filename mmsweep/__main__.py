"""The process of the command `mmsweep`, and of `python -m mmsweep`."""

from __future__ import annotations

import atexit
import logging
import os
import sys

from mmsweep.ending import exit_code, print_interrupted, raise_on_signals


def main() -> None:
    """`cli.main`, whose import takes a moment in which signals come, too."""
    try:
        from mmsweep import cli
    except KeyboardInterrupt as end:
        print_interrupted(sys.argv[1:])
        sys.exit(exit_code(end))
    cli.main()


def run() -> None:
    """`cli.main`, without waiting at the end for the interpreter to free all that libraries hold, which takes seconds.

    Threads that must end have ended by then, and the exit functions of what `cli.main` imports have run.
    """
    status = 1  # an exception's, whose traceback has been printed by then

    def leave() -> None:
        logging.shutdown()  # registered when it was imported, so it would have come after this
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            os._exit(status or 120)  # the interpreter's own status for that
        os._exit(status)

    atexit.register(leave)
    raise_on_signals()
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    run()
