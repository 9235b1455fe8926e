"""Remove what a lab left on this machine; prints what was found as a JSON list. Run in a private
mount namespace.
"""

from __future__ import annotations

import fcntl
import json
import sys

from lab import leftovers, namespace
from lab.layout import layout

if __name__ == "__main__":
    where = layout()
    where.machine.mkdir(parents=True, exist_ok=True)
    # A lab that starts in this moment waits, and one that another clean-up is at as well.
    with where.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        namespace.enter()
        found = leftovers.remove(where)
    sys.stdout.write(json.dumps(found) + "\n")
