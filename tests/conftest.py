"""What holds for every test."""

from __future__ import annotations

import signal

# A test run that was itself put in the background ignores interrupts and hands that down: programs
# that are to be interrupted would not hear of it. With a handler here, theirs is the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
