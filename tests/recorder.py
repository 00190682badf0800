"""The recorder as a process of its own, and a WebSocket client that can misbehave."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

APP = Path(__file__).parents[1] / "app.py"
PATIENCE = 20  # s to wait for anything, on a busy machine
HEADER = 58  # bytes before the audio in a mu-law file of the recorder


class Server:
    """A server as a process: app.py, or what `command` runs instead.

    It runs in the folder `directory`, with `args` behind its command and with the
    variables of `environment` added. What it has logged is in the list `lines`.
    """

    def __init__(
        self, directory, *args, command=(sys.executable, APP), environment=None
    ):
        self.directory = directory
        self.lines, self.news, self.has_ended = [], threading.Condition(), False
        self.process = subprocess.Popen(
            [*command, "--host=127.0.0.1", "--port=0", *args],
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.url = re.search(r"ws://\S+", self.wait_for("Listening on"))[0]
        self.host, self.port = parse_uri(self.url).host, parse_uri(self.url).port

    def read(self):
        """Collect the lines of the log, in a thread, until the process has ended."""
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.has_ended = True
            self.news.notify_all()

    def lines_with(self, *texts):
        """Return the lines that have all of `texts`."""
        return [line for line in self.lines if all(text in line for text in texts)]

    def wait_for(self, *texts, count=1):
        """Wait until `count` lines have all of `texts`; return the last of them.

        Fails at once if the process ends without them.
        """
        with self.news:
            while len(found := self.lines_with(*texts)) < count:
                come = not self.has_ended and self.news.wait(PATIENCE)
                assert come, f"no {texts} in the log:\n{''.join(self.lines)}"
            return found[count - 1]

    def forget_lines(self):
        """Let only lines be found that come from now on."""
        with self.news:
            self.lines.clear()

    def stop(self, signum=signal.SIGTERM):
        """End the server with a signal, and return its exit status."""
        self.process.send_signal(signum)
        return self.wait()

    def wait(self):
        """Wait for the server to end, and return its exit status."""
        status = self.process.wait(PATIENCE)
        self.reader.join()
        return status


class Client(contextlib.AbstractContextManager):
    """A WebSocket that reads only when asked to, and can end without a word."""

    def __init__(self, server):
        self.socket = socket.create_connection((server.host, server.port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol = ClientProtocol(parse_uri(server.url))
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        self.wait_for(lambda event: isinstance(event, Response))

    def __exit__(self, *_):
        self.socket.close()

    def flush(self):
        self.socket.sendall(b"".join(self.protocol.data_to_send()))

    def read(self):
        """Wait for events, and return them. Raises ConnectionError at the end."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.protocol.receive_data(data)
        self.flush()
        return self.protocol.events_received()

    def wait_for(self, condition):
        """Read until there is an event that meets `condition`."""
        while not any(condition(event) for event in self.read()):
            pass

    def send(self, *messages):
        """Send text messages, or binary ones where they are bytes."""
        for message in messages:
            if isinstance(message, bytes):
                self.protocol.send_binary(message)
            else:
                self.protocol.send_text(message.encode())
        self.flush()

    def wait_received(self):
        """Wait until the server has received all that was sent: it answers a ping."""
        self.protocol.send_ping(b"")
        self.flush()
        self.wait_for(lambda event: event.opcode is Opcode.PONG)

    def wait_closed(self):
        """Wait until the server has closed; return the code and the reason it gave."""
        self.flush()
        while not self.protocol.close_rcvd:
            self.read()
        return self.protocol.close_rcvd.code, self.protocol.close_rcvd.reason
