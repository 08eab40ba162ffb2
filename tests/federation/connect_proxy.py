"""A little forward proxy that knows CONNECT and Basic authentication."""

import socket
import socketserver
import threading
from base64 import b64encode
from contextlib import contextmanager, suppress


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        method, target, _ = self.rfile.readline().decode().split()
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        server = self.server
        server.asked.append((method, target))
        if server.hangs:
            server.stop.wait(30)
            return
        if server.password:
            want = "Basic " + b64encode(server.password.encode()).decode()
            if headers.get("proxy-authorization") != want:
                self.wfile.write(b"HTTP/1.1 407 Who are you\r\nX: y\r\n\r\n")
                return
        if server.allowed is not None and target not in server.allowed:
            self.wfile.write(b"HTTP/1.1 403 No\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as far:
            far.settimeout(None)
            server.lines.append(far)
            server.open += 1
            self.wfile.write(b"HTTP/1.1 200 OK\r\nVia: test\r\n\r\n")
            back = threading.Thread(target=_copy, args=(far, self.connection, server))
            back.start()
            _copy(self.connection, far, server)
            back.join()
            server.open -= 1


def _copy(source, target, server):
    with suppress(OSError):
        while piece := source.recv(65536):
            server.carried += piece[:200]
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Keeps what was asked for, the first bytes of all pieces, and what is open."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, password=None, allowed=None, hangs=False, tls=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:  # an ssl.SSLContext: spoken to over TLS itself
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.password, self.allowed, self.hangs = password, allowed, hangs
        self.asked, self.lines, self.carried = [], [], bytearray()
        self.open = 0
        self.stop = threading.Event()

    @property
    def port(self):
        return self.server_address[1]

    def cut(self):
        """Break all tunnels on the far side."""
        for line in self.lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # a line that was cut on purpose


@contextmanager
def connect_proxy(**how):
    """A running proxy."""
    proxy = ConnectProxy(**how)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop.set()
        proxy.cut()
        proxy.shutdown()
        proxy.server_close()
        thread.join()
