"""What holds for every test."""

from __future__ import annotations

import functools
import gc
import os
import signal

from botocore.loaders import JSONFileLoader

# A test run that was itself put in the background ignores interrupts and hands that down: programs
# that are to be interrupted would not hear of it. With a handler here, theirs is the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test makes its own account and its own clients, and there are hundreds. Each would read EC2's
# model again (0.1 s) and fill its account with 850 images of Amazon's that no test asks for.
JSONFileLoader.load_file = functools.cache(JSONFileLoader.load_file)  # type: ignore[method-assign]
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

# What they make lives on by the million: going through all of it was a fifth of the tests' time.
gc.set_threshold(100_000, 50, 100)
