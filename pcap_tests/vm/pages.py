"""Web servers for the guest's tests: one page again and again by one connection; and a file that is sent at a steady pace, for as long as it takes.

Not here: who asks for it.
"""

from __future__ import annotations

import hashlib
import http.server
import time


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


class Page(http.server.BaseHTTPRequestHandler):
    """The page; whom it goes to is in a header."""

    protocol_version = "HTTP/1.1"
    BODY = b"a page\n"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-From", self.client_address[0])
        self.send_header("Content-Length", str(len(self.BODY)))
        self.end_headers()
        self.wfile.write(self.BODY)

    def log_message(self, *_: object) -> None:
        pass


class Steady(Page):
    """PIECES pieces, one every PAUSE seconds: each has its number in it, so that no two are alike."""

    PIECES, SIZE, PAUSE = 450, 8192, 0.005

    @classmethod
    def piece(cls, number: int) -> bytes:
        return number.to_bytes(4, "big") * (cls.SIZE // 4)

    @classmethod
    def digest(cls) -> str:
        whole = hashlib.sha256()
        for number in range(cls.PIECES):
            whole.update(cls.piece(number))
        return whole.hexdigest()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-From", self.client_address[0])
        self.send_header("Content-Length", str(self.PIECES * self.SIZE))
        self.end_headers()
        for number in range(self.PIECES):
            self.wfile.write(self.piece(number))
            time.sleep(self.PAUSE)
