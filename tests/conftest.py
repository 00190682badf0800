"""The recorder as a process of its own, and a look at what it has written."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
import soundfile
from hypothesis import settings
from simulate_call import MULAW, call, connected, play, start
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.sync.client import connect
from websockets.uri import parse_uri

APP = Path(__file__).parents[1] / "app.py"
sys.path.insert(0, str(APP.parent))
PATIENCE = 20  # s to wait for what takes milliseconds on an idle machine
SUBTYPES = {"audio/x-mulaw": "ULAW", "audio/x-alaw": "ALAW", "audio/x-l16": "PCM_16"}


def pytest_addoption(parser):
    parser.addoption("--random-calls", default=60, type=int)


settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("default")


def can_unshare():
    """Tell whether namespaces of our own, with mounts, can be had."""
    command = ["unshare", "--net", "--mount", "ip", "link", "set", "lo", "up"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


# On CI these must run: there the tests fail where they cannot.
privileged = pytest.mark.skipif(
    not os.environ.get("CI") and not can_unshare(),
    reason="needs Linux, root and iproute2, for namespaces and mounts",
)


class Server:
    """A running app.py, with its recordings in `directory` and its log in `lines`."""

    def __init__(self, directory, *args, environment=None, command=None):
        self.directory = directory
        self.lines = []
        command = command or [sys.executable, APP]
        self.news = threading.Condition()
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0", *args],
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.url = re.search(r"ws://\S+", self.wait_for("Listening on"))[0]
        uri = parse_uri(self.url)
        self.address = uri.host, uri.port

    def read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()

    def wait_for(self, *texts):
        """Return the first line of the log that has all of `texts`, once it is there."""

        def find():
            return next((x for x in self.lines if all(t in x for t in texts)), None)

        with self.news:
            assert self.news.wait_for(find, PATIENCE), (texts, self.lines)
            return find()

    def connect(self, **options):
        """Open a WebSocket to the server."""
        return connect(self.url, compression=None, proxy=None, **options)

    def stop(self, signum=signal.SIGTERM):
        """End the server and return its exit status."""
        self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        self.reader.join()
        return status


class RawClient:
    """A WebSocket on a bare socket: it answers nothing, and can end without manners."""

    def __init__(self, server):
        self.socket = socket.create_connection(server.address, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol = ClientProtocol(parse_uri(server.url))
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        self.wait_for(lambda event: isinstance(event, Response))

    def flush(self):
        self.socket.sendall(b"".join(self.protocol.data_to_send()))

    def wait_for(self, condition):
        """Read until an event comes that meets `condition`."""
        while not any(condition(event) for event in self.protocol.events_received()):
            data = self.socket.recv(65536)
            assert data, "the server has closed the connection"
            self.protocol.receive_data(data)

    def send(self, *messages):
        """Send text messages, or binary ones where they are bytes."""
        for message in messages:
            if isinstance(message, bytes):
                self.protocol.send_binary(message)
            else:
                self.protocol.send_text(message.encode())
        self.flush()

    def sync(self):
        """Wait until the server has received all that was sent, by a ping."""
        self.protocol.send_ping(b"")
        self.flush()
        self.wait_for(lambda event: event.opcode is Opcode.PONG)

    def close(self):
        self.protocol.send_close(1000)
        self.flush()
        self.socket.close()

    def reset(self):
        """End with a RST instead of a FIN."""
        linger = struct.pack("ii", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


@pytest.fixture
def start_server(tmp_path):
    """Start servers, with their arguments, that are stopped when the test ends."""
    servers = []

    def start(*args, directory=tmp_path, **options):
        servers.append(Server(directory, *args, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0
        assert "Traceback" not in "".join(server.lines)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server for all tests that leave it as it is."""
    server = Server(tmp_path_factory.mktemp("recordings"))
    yield server
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.lines)


@pytest.fixture
def call_sid():
    return str(uuid.uuid4())


@contextlib.contextmanager
def open_stream(server, call_sid, tracks=("inbound",), media_format=MULAW):
    """Connect to the server and start a stream."""
    with server.connect() as websocket:
        websocket.send(connected())
        websocket.send(start(call_sid, tracks, media_format))
        yield websocket


def wait_closed(websocket):
    """Wait until the server has closed the connection; return its code and reason."""
    with pytest.raises(ConnectionClosed):
        websocket.recv(timeout=PATIENCE)
    return websocket.close_code, websocket.close_reason


def stream(server, call_sid, audio, media_format=MULAW):
    """Stream the tracks in `audio` at once, to the end."""
    asyncio.run(play(server.url, call(call_sid, audio, media_format), fast=True))


def check_recording(path, audio, encoding="audio/x-mulaw", sample_rate=8000):
    """Assert that `path` is a WAV file of exactly the bytes `audio`."""
    subtype = SUBTYPES[encoding.lower()]
    raw = {
        "format": "RAW",
        "subtype": subtype,
        "samplerate": sample_rate,
        "channels": 1,
    }
    if subtype == "PCM_16":
        raw["endian"] = "LITTLE"
    info = soundfile.info(path)
    assert (info.format, info.subtype) == ("WAV", subtype)
    assert (info.samplerate, info.channels) == (sample_rate, 1)
    expected, _ = soundfile.read(io.BytesIO(audio), dtype="int16", **raw)
    found, _ = soundfile.read(path, dtype="int16")
    assert (found == expected).all() and len(found) == len(expected)
    # mu-law and A-law have two bytes for some values: compare the bytes as well.
    assert path.read_bytes().endswith(audio)
