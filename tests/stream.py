"""Both ends of a stream, for all that is here: SignalWire's messages, the recorder."""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import websockets
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

APP = Path(__file__).parents[1] / "app.py"
PATIENCE = 20  # s to wait for anything, on a busy machine
TRACKS = ("inbound", "outbound")
CHUNK = 20  # ms of audio in a message
CONNECTED = json.dumps({"event": "connected", "protocol": "Call", "version": "0.2.0"})
MULAW = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
HEADER = 58  # bytes before the audio in a mu-law file


def dump(event, sequence_number, **body):
    return json.dumps({"event": event, "sequenceNumber": str(sequence_number), **body})


def start(call_sid, tracks=("inbound",), media_format=MULAW, **fields):
    """Return the message that names the call; `fields` replace those of `start`."""
    sids = {sid: str(uuid.uuid4()) for sid in ("streamSid", "accountSid")}
    body = {"callSid": call_sid, "tracks": tracks, "mediaFormat": media_format}
    return dump("start", 1, start=sids | body | fields)


def media(track, payload, timestamp, chunk=1, sequence_number=2):
    """Return the message that carries `payload`, bytes for `timestamp` ms."""
    body = {"track": track, "chunk": str(chunk), "timestamp": str(timestamp)}
    body["payload"] = base64.b64encode(payload).decode()
    return dump("media", sequence_number, media=body)


def stop(sequence_number=3):
    """Return the message that comes last."""
    return dump("stop", sequence_number)


def call(call_sid, audio, media_format=MULAW, loss=0.0, seed=None, pause=None):
    """Yield the messages of a call, each with its time in ms since the call's start.

    `audio` maps the names of the tracks to their bytes. Of the chunks, the fraction
    `loss` is not sent, chosen by `seed`. `pause` is a track, a place in its audio in s,
    and how many s nothing is sent there; what follows comes that much later.
    """
    pause_track, pause_at, pause_length = pause or (None, 0, 0)
    rng = random.Random(seed)
    width = 2 if "l16" in media_format["encoding"].lower() else 1  # bytes
    size = media_format["sampleRate"] * width * CHUNK // 1000
    chunks = []
    for track, data in audio.items():
        for number in range(-(-len(data) // size)):
            timestamp = number * CHUNK
            if track == pause_track and timestamp >= pause_at * 1000:
                timestamp += int(pause_length * 1000)
            if rng.random() >= loss:
                payload = data[number * size : (number + 1) * size]
                chunks.append((timestamp, track, number + 1, payload))
    chunks.sort(key=lambda chunk: chunk[0])
    end = chunks[-1][0] + CHUNK if chunks else 0
    yield 0, CONNECTED
    yield 0, start(call_sid, list(audio), media_format)
    for sequence_number, (timestamp, track, number, payload) in enumerate(chunks, 2):
        yield timestamp, media(track, payload, timestamp, number, sequence_number)
    yield end, stop(len(chunks) + 2)


async def play(url, messages, fast=False, token=None):
    """Send `messages` to `url`, and wait for the server to save them and to hang up.

    Each is sent at its time or, if `fast`, at once. Raises OSError where there is no
    server, websockets.WebSocketException where it does not take the call to its end.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options = {"additional_headers": headers, "compression": None, "proxy": None}
    async with websockets.connect(url, **options) as websocket:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for time, message in messages:
            if not fast:
                await asyncio.sleep(began + time / 1000 - loop.time())
            await websocket.send(message)
        async for _ in websocket:  # until it is closed; raises if that is for an error
            pass


def recording(folder, track, call_sid):
    """Return the path at which the recorder saves the first recording of a track."""
    return folder / f"{track.capitalize()}-{call_sid}.wav"


class Server:
    """A server as a process, app.py if there is no other `command`.

    It runs in the folder `directory`, and what it has logged is in the list `lines`.
    """

    def __init__(self, directory, *args, command=(sys.executable, APP), **environment):
        self.directory = directory
        self.lines = []
        self.news = threading.Condition()
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0", *args],
            cwd=directory,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.url = re.search(r"ws://\S+", self.wait_for("Listening on"))[0]
        self.port = parse_uri(self.url).port

    def read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()

    def wait_for(self, *texts, count=1):
        """Wait until `count` lines of the log have all of `texts`; return that line."""

        def find():
            found = [x for x in self.lines if all(text in x for text in texts)]
            return found[count - 1 :]

        with self.news:
            assert self.news.wait_for(find, PATIENCE), (texts, self.lines)
            return find()[0]

    def stop(self, signum=signal.SIGTERM):
        """End the server and return its exit status."""
        self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        self.reader.join()
        return status


class Client(contextlib.AbstractContextManager):
    """A WebSocket that reads only when asked, and can end without manners."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol = ClientProtocol(parse_uri(server.url))
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        self.wait_for(lambda event: isinstance(event, Response))

    def __exit__(self, *_):
        self.socket.close()

    def flush(self):
        """Send what the protocol has to say."""
        self.socket.sendall(b"".join(self.protocol.data_to_send()))

    def read(self):
        """Wait for events, and return them; raises ConnectionError at the end."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.protocol.receive_data(data)
        self.flush()
        return self.protocol.events_received()

    def wait_for(self, condition):
        """Read until an event comes that meets `condition`."""
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

    def sync(self):
        """Wait until the server has received all that was sent, by a ping."""
        self.protocol.send_ping(b"")
        self.flush()
        self.wait_for(lambda event: event.opcode is Opcode.PONG)

    def wait_closed(self):
        """Wait until the server has closed; return the code and the reason it gave."""
        self.flush()
        while not self.protocol.close_rcvd:
            self.read()
        return self.protocol.close_rcvd.code, self.protocol.close_rcvd.reason
