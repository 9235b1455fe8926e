"""The application of the scenario: tells who it is and where it thinks the client is."""

from __future__ import annotations

import socket
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # longer than HAProxy keeps an idle connection

    def do_GET(self) -> None:
        body = f"{socket.gethostname()} {self.headers.get('X-Forwarded-For', '')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/etc/flotilla/tls/leaf.pem")
    server = ThreadingHTTPServer(("", 443), Answer)
    # The handshake is the thread's: one slow client holds up nobody.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.serve_forever()
