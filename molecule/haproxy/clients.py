"""Keep-alive clients that are idle between requests, and one that connects anew each time.

    clients.py ADDRESS SECONDS CLIENTS

A request counts as failed when no complete 200 came back on a connection the server had not
announced to close. Prints one JSON object: served, failed, errors (text to count), hosts (who
answered how often).
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter


class Clients:
    def __init__(self, address: str, deadline: float) -> None:
        self.address, self.deadline = address, deadline
        self.served, self.errors, self.hosts = 0, Counter[str](), Counter[str]()
        self.lock = threading.Lock()

    def request(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/", headers={"X-Forwarded-For": "203.0.113.9"})
            answer = connection.getresponse()
            body = answer.read().decode()
            fault = "" if answer.status == http.HTTPStatus.OK else f"status {answer.status}"
            if "203.0.113.9" in body:
                fault = "a forged X-Forwarded-For came through"
        except (OSError, http.client.HTTPException) as error:
            fault, body = f"{type(error).__name__}: {error}", ""
            connection.close()
        with self.lock:
            if fault:
                self.errors[fault] += 1
            else:
                self.served += 1
                self.hosts[body.split()[0]] += 1

    def keep_alive(self, pause: float) -> None:
        connection = http.client.HTTPConnection(self.address, 80, timeout=5)
        while time.monotonic() < self.deadline:
            self.request(connection)
            time.sleep(pause)

    def connect_anew(self) -> None:
        while time.monotonic() < self.deadline:
            connection = http.client.HTTPConnection(self.address, 80, timeout=5)
            self.request(connection)
            connection.close()
            time.sleep(0.02)


def main() -> None:
    clients = Clients(sys.argv[1], time.monotonic() + float(sys.argv[2]))
    # Different pauses, up to several seconds: an idle connection is what a reload cuts.
    pauses = [0.1 + 0.09 * number for number in range(int(sys.argv[3]))]
    threads = [threading.Thread(target=clients.keep_alive, args=(pause,)) for pause in pauses]
    threads.append(threading.Thread(target=clients.connect_anew))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(
        {
            "served": clients.served,
            "failed": sum(clients.errors.values()),
            "errors": dict(clients.errors),
            "hosts": dict(clients.hosts),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
