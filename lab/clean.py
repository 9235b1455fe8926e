"""Remove what a lab left on this machine; prints what was found as a JSON list. Run in a private
mount namespace.
"""

from __future__ import annotations

import json
import sys

from lab import leftovers, namespace
from lab.layout import layout

if __name__ == "__main__":
    namespace.enter()
    sys.stdout.write(json.dumps(leftovers.remove(layout())) + "\n")
