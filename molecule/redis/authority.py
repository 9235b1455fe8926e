"""Make an authority with an issuer for the scenario's Redis hosts; without one they serve nothing.

    authority.py FILE ZONE NETWORK

FILE gets one JSON object: authority (certificate, PEM), issuer (key and certificate, PEM).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla.rules import authority


def main() -> None:
    file, zone, network = sys.argv[1:]
    now = datetime.now(UTC)
    root = authority.root("molecule", "redis", authority.new_key(), now)
    issuer = authority.issuer(zone, network, root, authority.new_key(), now)
    Path(file).touch(mode=0o600)
    Path(file).write_text(json.dumps({"authority": root.public(), "issuer": issuer.pem()}))


if __name__ == "__main__":
    main()
