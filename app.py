"""Record SignalWire calls: save the audio that a <Stream> sends as WAV files.

A stream is JSON on a WebSocket: `start` names the call, `media` is audio, `stop` ends.
"""

import argparse
import asyncio
import binascii
import contextlib
import dataclasses
import functools
import hmac
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pywav
import websockets

TRACKS = ("inbound", "outbound")
SID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what is safe in the name of a file

# Encoding, in lower case: its name, WAV format code, and a sample of silence.
ENCODINGS = {
    "audio/x-mulaw": ("mu-law", 7, b"\xff"),
    "audio/x-alaw": ("A-law", 6, b"\xd5"),
    "audio/x-l16": ("L16", 1, b"\0\0"),
}

GAP = 200  # ms that are missing, and become silence; less is jitter
LEAD = 2000  # ms that a sender's timestamp may be ahead of our own clock for that
NAP = 0.2  # s without reading a call: to wake up for ten chunks at once costs far less
BACKLOG = 2**15  # bytes in one read, more than comes in most naps: we are behind
ABOUT = 'This recorder is running. Its address belongs in <Stream url="wss://...">.\n'

log = logging.getLogger("app")


class Refused(Exception):
    """A stream is not recorded. Holds close code, reason, and the repr of what came."""


@dataclasses.dataclass
class Track:
    """One track of a stream: how its audio is encoded, and its chunks."""

    format: int  # WAV's code of the encoding
    silence: bytes  # for one sample
    sample_rate: int  # Hz
    chunks: list[bytes] = dataclasses.field(default_factory=list)
    length: int = 0  # bytes in the chunks

    def seconds(self):
        """Return how long the chunks play."""
        return self.length / (self.sample_rate * len(self.silence))

    def append(self, payload, timestamp, elapsed):
        """Append `payload`, after silence for what is missing; times are in ms."""
        gap = timestamp - round(self.seconds() * 1000)
        if gap >= GAP and timestamp <= elapsed + LEAD:
            payload = self.silence * (gap * self.sample_rate // 1000) + payload
        self.chunks.append(payload)
        self.length += len(payload)

    def write(self, folder, name):
        """Write a new file in `folder`, whole or not at all, and return its path."""
        for number in itertools.count(1):
            path = folder / (f"{name}-{number}.wav" if number > 1 else f"{name}.wav")
            part = path.with_suffix(".wav.part")
            with contextlib.suppress(FileExistsError):
                part.touch(exist_ok=False)  # claims the name, or it is the next number
                try:
                    if not os.path.lexists(path):
                        header = 1, self.sample_rate, 8 * len(self.silence), self.format
                        with contextlib.closing(pywav.WavWrite(part, *header)) as wav:
                            wav.write(b"".join(self.chunks))
                        with part.open("rb+") as file:
                            os.fsync(file.fileno())  # before the name says it is saved
                        return part.rename(path)
                finally:
                    part.unlink(missing_ok=True)


def begin(start):
    """Log what `start` begins; return its callSid and its tracks, or raise Refused."""
    call_sid = start.get("callSid") or start.get("streamSid")
    if not isinstance(call_sid, str) or not SID.fullmatch(call_sid):
        reason = "callSid must be 1 to 64 letters, digits, - or _"
        raise Refused(1008, reason, repr(call_sid))
    match start.get("mediaFormat"):
        case None:
            encoding, sample_rate, channels = "audio/x-mulaw", 8000, 1
        case {"encoding": str(encoding), "sampleRate": int(sample_rate), **others}:
            encoding, channels = encoding.lower(), others.get("channels", 1)
        case _:
            encoding = None  # which is refused
    if encoding not in ENCODINGS or not 8000 <= sample_rate <= 48000 or channels != 1:
        reason = f"mediaFormat must be {', '.join(ENCODINGS)}, 8 to 48 kHz, 1 channel"
        raise Refused(1003, reason, repr(start["mediaFormat"]))
    label, format_code, silence = ENCODINGS[encoding]
    announced = [track for track in TRACKS if track in str(start.get("tracks"))]
    about = "both tracks" if len(announced) == 2 else "".join(announced) or "no tracks"
    about += f", {label}, {sample_rate / 1000:g} kHz"
    if isinstance(parameters := start.get("customParameters"), dict):
        about += "".join(f", {name}={value}" for name, value in parameters.items())
    log.info("%s: %s", call_sid, repr(about[:120])[1:-1])  # repr() has no line breaks
    return call_sid, {name: Track(format_code, silence, sample_rate) for name in TRACKS}


def save(call_sid, tracks, wanted, folders):
    """Save each track in one of the `folders`, in up to ten rounds, and log which."""
    for track_name, track in tracks.items():
        name = f"{track_name.capitalize()}-{call_sid}"
        if not track.length:
            why = "no audio" if wanted in (track_name, "both") else "not in --tracks"
            log.info("No %s.wav: %s", name, why)
            continue
        for folder in folders * 10:
            try:
                path = track.write(folder, name)
            except Exception as error:  # noqa: BLE001 - whatever it is, try again
                log.error("Could not save %s.wav in %s: %r", name, folder, error)
                if folder is folders[-1]:
                    time.sleep(1)
            else:
                log.info("Saved %s, %.1f s", path, track.seconds())
                break
        else:
            log.error("Call has lost %.1f s: %s.wav", track.seconds(), name)


async def record(websocket, wanted, folders, saver):
    """Record the stream on `websocket`; however it ends, save the `wanted` tracks."""
    call_sid, tracks, began, skipped = "No call yet", {}, 0, 0
    try:
        async for message in websocket:
            try:
                data = json.loads(message)
                event = data["event"]
                if event == "start":
                    if tracks:
                        raise ValueError("a second start")
                    call_sid, tracks = begin(data.get("start") or {})
                    began = time.monotonic()
                    websocket.recording = True
                elif event == "media":
                    media = data["media"]
                    payload = binascii.a2b_base64(media["payload"], strict_mode=True)
                    digits = str(media.get("timestamp"))
                    timestamp = int(digits) if digits.isdecimal() else 0
                    elapsed = int((time.monotonic() - began) * 1000)
                    if wanted in (media["track"], "both"):
                        tracks[media["track"]].append(payload, timestamp, elapsed)
                elif event == "stop":
                    break
                elif not isinstance(event, str):  # while a new event may be added
                    raise TypeError("no event")
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
                skipped += 1
                if skipped == 1:
                    log.warning("%s: skipped a message: %.100r", call_sid, message)
    except websockets.ConnectionClosedError as closed:
        if tracks:
            why = str(closed.sent or closed.rcvd or "no closing handshake")
            log.warning("%s: the line dropped: %.200r", call_sid, why)
    except Refused as refused:
        log.warning("Refused a stream: %s; it is %.200s", *refused.args[1:])
        await websocket.close(*refused.args[:2])
    finally:
        if skipped > 1:
            log.warning("%s: skipped %d messages in all", call_sid, skipped)
        # Shielded, so that it is done even if the server, about to end, does not wait.
        todo = save, call_sid, tracks, wanted, folders
        await asyncio.shield(websocket.loop.run_in_executor(saver, *todo))


class Connection(websockets.ServerConnection):
    """Naps while it records, and leaves half of the descriptors to files and others."""

    limit = sys.maxsize  # of descriptors; a new one is the lowest number that is free
    recording = False  # set by record()
    last_warning = float("-inf")  # of any connection, s on the loop's clock

    def connection_made(self, transport):
        super().connection_made(transport)
        if transport.get_extra_info("socket").fileno() >= self.limit // 2:
            transport.abort()
            if self.loop.time() > Connection.last_warning + 60:
                Connection.last_warning = self.loop.time()
                log.warning("Dropped connections: out of %d descriptors", self.limit)

    def data_received(self, data):
        super().data_received(data)
        # Not if the library has stopped reading by itself, nor while it is closing.
        live = self.recording and self.state is websockets.State.OPEN
        if live and self.transport.is_reading() and len(data) < BACKLOG:
            self.transport.pause_reading()
            self.loop.call_later(NAP, self.transport.resume_reading)


def answer(connection, request, token):
    """Return the answer to a request that is for no stream, or has not the token."""
    if "Upgrade" not in request.headers:
        return connection.respond(200, ABOUT)
    given = ", ".join(request.headers.get_all("Authorization"))
    if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        log.warning("Refused a connection: no or not the right bearer token")
        response = connection.respond(401, "A bearer token is needed.\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def addresses(host):
    """Yield those addresses of `host` that exist, as asyncio does from 3.13 on."""
    for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(address)
            yield socket.getnameinfo(address, socket.NI_NUMERICHOST)[0]


async def serve(args, token, folders, saver):
    """Record streams until SIGINT (Ctrl-C) or SIGTERM, then save those in progress."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # of which Windows has no SIGHUP
    signals = [signum for signum in signal.Signals if signum.name in names]
    for signum in signals:
        if signum.name != "SIGHUP" or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda *_: loop.call_soon_threadsafe(stop.set))
    try:
        server = await websockets.serve(
            functools.partial(record, wanted=args.tracks, folders=folders, saver=saver),
            list(addresses(args.host)) or args.host,
            args.port,
            process_request=functools.partial(answer, token=token),
            create_connection=Connection,
            compression=None,
            max_size=2**16,  # bytes
            max_queue=2**12,  # messages, far more than come in a nap
            close_timeout=2,  # s
            backlog=min(Connection.limit // 16, 100),  # accepted before any is dropped
        )
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"Cannot listen on --port {args.port} of {args.host}: {error}")
    host = f"[{args.host}]" if ":" in args.host else args.host
    port = server.sockets[0].getsockname()[1]
    folder = args.directory.absolute()
    log.info("Listening on ws://%s:%d and saving to %s", host, port, folder)
    if not token:
        log.info("No AUTH_BEARER_TOKEN: anybody who finds the address can send audio")
    await stop.wait()
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)  # impatience must not cost a call
    if in_progress := sum(connection.recording for connection in server.connections):
        log.info("Saving the calls in progress: %d", in_progress)
    server.close()
    # asyncio.run() cancels those who are not gone by then, which saves them as well.
    await asyncio.wait([loop.create_task(server.wait_closed())], timeout=3)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Record SignalWire calls to WAV files.",
        epilog="If AUTH_BEARER_TOKEN is set in the environment, streams need it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    choices = [*TRACKS, "both"]
    parser.add_argument("--host", default="localhost", help="address to listen on")
    parser.add_argument("--port", default=5000, type=int, help="port to listen on")
    parser.add_argument("--directory", default=".", type=Path, help="where to save")
    parser.add_argument("--tracks", default="both", choices=choices, help="to be saved")
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%X")
    log.setLevel(logging.INFO)
    library = logging.getLogger("websockets.server")  # has a traceback for a GET's body
    library.addFilter(lambda record: record.msg != "unexpected internal error")
    try:
        tempfile.TemporaryFile(dir=args.directory).close()
    except OSError as error:
        sys.exit(f"Cannot write to folder {args.directory} (--directory): {error}")
    token = os.environ.get("AUTH_BEARER_TOKEN", "")
    if not token.isascii() or not token.isprintable() or " " in token:
        sys.exit("AUTH_BEARER_TOKEN must be ASCII characters without spaces")
    with contextlib.suppress(ImportError):  # on Windows, which has no such limit
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        Connection.limit = min(hard, 10240) if sys.platform == "darwin" else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (Connection.limit, hard))
    with ThreadPoolExecutor(8) as saver:
        # All threads are started now, as each is kept busy; later, that may fail.
        list(saver.map(time.sleep, [0.1] * 8))
        folders = [args.directory]
        with contextlib.suppress(OSError):  # there may be no temporary folder
            folders.append(Path(tempfile.gettempdir()))
        asyncio.run(serve(args, token, folders, saver))
    log.info("Stopped")


if __name__ == "__main__":
    main()
