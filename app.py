"""Record SignalWire calls: save the audio that a <Stream> sends as WAV files.

SignalWire's <Stream> verb copies the audio of a running call to a WebSocket as JSON
messages: `start` names the call, each `media` carries a chunk of one track's audio,
`stop` ends the stream. One WebSocket is one stream of one call.
"""

import argparse
import asyncio
import base64
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
import struct
import sys
import tempfile
import time
from pathlib import Path

import pywav
import websockets

TRACKS = ("inbound", "outbound")
CALL_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
TOKEN = re.compile(r"[!-~]*")  # what a header can hold

# Encoding, in lower case: WAV format code, bytes per sample, a sample of silence.
ENCODINGS = {
    "audio/x-mulaw": (7, 1, b"\xff"),
    "audio/x-alaw": (6, 1, b"\xd5"),
    "audio/x-l16": (1, 2, b"\0\0"),
}
SAMPLE_RATES = range(8000, 48001)  # Hz

# A hole of HOLE ms or more is filled with silence; less is jitter. A chunk may come
# EARLY ms before its time, and 1 ms more for every DRIFT ms of the call, as no two
# clocks agree. HELD_UP ms is the longest that `start` may have been on its way: our
# clock begins with it, the stream's when the connection was opened.
HOLE = 200
EARLY = 150
DRIFT = 5000
HELD_UP = 2000

# Nobody waits for the audio, and most of what a chunk of 20 ms costs is to wake up for
# it. So a stream that is LIVELY s old is read in gulps, with naps of NAP s in between,
# unless there were BURST messages in a gulp: then there are more to come.
LIVELY = 5
NAP = 0.23
BURST = 100

log = logging.getLogger("app")
saved = itertools.count()  # next() is atomic among the threads that save, += is not


class Refused(Exception):
    """A stream is not recorded. Holds close code, reason, and the repr of what came."""


@dataclasses.dataclass
class Track:
    """One track of a stream: how its audio is encoded, and its chunks."""

    code: int
    width: int
    silence: bytes
    sample_rate: int
    ahead: int  # ms that the stream's clock has shown to be ahead of ours
    chunks: list[bytes] = dataclasses.field(default_factory=list)
    received: int = 0  # bytes of audio
    filled: int = 0  # bytes of silence between them
    offset: int = 0  # ms that the first timestamp was too far ahead of our clock

    def milliseconds(self, length):
        """Return how long `length` bytes play."""
        return length * 1000 // (self.sample_rate * self.width)

    def append(self, payload, timestamp, elapsed):
        """Append the bytes `payload`, after silence for what is missing before them.

        `timestamp` is where they belong, `elapsed` when they came, both in ms since the
        stream's start. A timestamp is a stranger's word: silence is only added for time
        that has passed on our own clock as well.
        """
        passed = elapsed + elapsed // DRIFT + EARLY + self.ahead
        if not self.chunks and timestamp > passed:
            self.offset = timestamp - elapsed
        timestamp -= self.offset
        hole = timestamp - self.milliseconds(self.received + self.filled)
        if hole >= HOLE and timestamp <= passed:
            silence = self.silence * (hole * self.sample_rate // 1000)
            self.chunks.append(silence)
            self.filled += len(silence)
        self.chunks.append(payload)
        self.received += len(payload)
        self.ahead = max(self.ahead, self.milliseconds(self.received) - elapsed)

    def write(self, directory, name):
        """Write the track to a new file in the folder `directory`, and return its path.

        It is `name`.wav or, where that exists, `name`-2.wav and so on. It appears there
        whole; OSError is raised, and nothing left behind, if it cannot be written.
        """
        audio = b"".join(self.chunks)
        number = 0
        while True:
            number += 1
            path = directory / (f"{name}-{number}.wav" if number > 1 else f"{name}.wav")
            part = path.with_suffix(".wav.part")
            try:
                part.touch(exist_ok=False)  # to have the part is to have the name
            except FileExistsError:
                continue
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(part.unlink)
                if os.path.lexists(path):
                    continue
                header = 1, self.sample_rate, 8 * self.width, self.code
                with contextlib.closing(pywav.WavWrite(part, *header)) as wav:
                    wav.write(audio)
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())  # before the name says that it is saved
                part.rename(path)
                cleanup.pop_all()
                return path


def parse_start(start):
    """Return callSid, encoding and sample rate of `start`, the object in that message.

    Raises Refused if the callSid is not fit for a file's name, or if a WAV file of the
    audio would have the wrong header.
    """
    call_sid = start.get("callSid") if isinstance(start, dict) else None
    if not isinstance(call_sid, str) or not CALL_SID.fullmatch(call_sid):
        reason = "callSid must be 1 to 64 letters, digits, - or _"
        raise Refused(websockets.CloseCode.POLICY_VIOLATION, reason, repr(call_sid))
    match media_format := start.get("mediaFormat"):
        case None:
            return call_sid, "audio/x-mulaw", 8000
        case {"encoding": str(encoding), "sampleRate": int(sample_rate)}:
            known = encoding.lower() in ENCODINGS and sample_rate in SAMPLE_RATES
            if known and media_format.get("channels", 1) == 1:
                return call_sid, encoding.lower(), sample_rate
    reason = f"mediaFormat must be {', '.join(ENCODINGS)}, 8000 to 48000 Hz, 1 channel"
    raise Refused(websockets.CloseCode.UNSUPPORTED_DATA, reason, repr(media_format))


def parse_timestamp(timestamp):
    """Return `timestamp`, which is decimal digits, in ms; or 0 where it is not.

    Nothing can be missing before 0.
    """
    digits = str(timestamp) if isinstance(timestamp, (str, int)) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 20 else 0


def write_tracks(call_sid, tracks, directory):
    """Write the `tracks` with audio to `directory`, or else to the temporary folder."""
    for track_name, track in tracks.items():
        if not track.chunks:
            continue
        name = f"{track_name.capitalize()}-{call_sid}"
        seconds = track.milliseconds(track.received + track.filled) / 1000
        for folder in (directory, None):
            try:
                path = track.write(folder or Path(tempfile.gettempdir()), name)
            except (OSError, MemoryError, struct.error) as error:
                log.error("Could not save %s.wav: %s", name, error)
            else:
                next(saved)
                log.info("Saved %s, %.1f s", path, seconds)
                break
        else:
            log.error("Call %s has lost %.1f s: %s.wav", call_sid, seconds, name)


async def save(call_sid, tracks, directory):
    """Write the tracks in a thread, so that other calls go on."""
    if tracks:
        run = asyncio.get_running_loop().run_in_executor
        # Shielded, so that it is run even if the server, about to end, gives up waiting.
        await asyncio.shield(run(None, write_tracks, call_sid, tracks, directory))


async def record(websocket, directory, wanted):
    """Record the stream on `websocket`: start, media, stop, save.

    However it ends, what came of the tracks in `wanted` is saved to `directory`.
    """
    call_sid, tracks, began = "(not started)", {}, 0
    skipped, gulp, napped = 0, 0, False
    opened = last = time.monotonic()
    code, reason = websockets.CloseCode.NORMAL_CLOSURE, ""

    try:
        async for message in websocket:
            now = time.monotonic()
            try:
                match data := json.loads(message):
                    case {"event": "media", "media": {"payload": str(coded)} as media}:
                        name = media.get("track")
                        if not tracks or name not in TRACKS:
                            raise ValueError("media before start, or of no known track")
                        payload = base64.b64decode(coded, validate=True)
                        if base64.b64encode(payload).decode() != coded:
                            raise ValueError("a payload that is not strictly base64")
                        if payload and name in tracks:
                            timestamp = parse_timestamp(media.get("timestamp"))
                            elapsed = int((now - began) * 1000)
                            tracks[name].append(payload, timestamp, elapsed)
                    case {"event": "media"}:
                        raise ValueError("media without a payload")
                    case {"event": "start"}:
                        saving, tracks = save(call_sid, tracks, directory), {}
                        await saving
                        start = data.get("start")
                        call_sid, encoding, sample_rate = parse_start(start)
                        about = repr(start.get("tracks"))[:40], encoding, sample_rate
                        log.info(
                            "Call %s: stream of %s started, %s, %d Hz", call_sid, *about
                        )
                        held_up = min(int((now - opened) * 1000), HELD_UP)
                        row = *ENCODINGS[encoding], sample_rate, held_up
                        tracks = {name: Track(*row) for name in wanted}
                        began = opened = now
                    case {"event": "stop"}:
                        break
                    case {"event": str()}:
                        pass
                    case _:
                        raise ValueError("not an object with an event")
            except (ValueError, RecursionError) as error:
                skipped += 1
                if skipped == 1:
                    log.warning("Call %s: skipped a message: %s", call_sid, error)

            if now - last < 0.005:
                gulp += 1
            else:  # we had to wait for the message: those before it were all there is
                live = tracks and now - began > LIVELY and gulp < BURST
                # Once the connection is closing, there is no time to lose.
                live = live and websocket.state is websockets.State.OPEN
                napped = live and not napped  # what came during a nap is read first
                if napped:
                    await asyncio.sleep(NAP)
                    now = time.monotonic()
                gulp = 0
            last = now
    except websockets.ConnectionClosedError as error:
        if tracks:
            log.warning("Call %s: the line dropped: %.200r", call_sid, str(error))
    except Refused as refused:
        code, reason, came = refused.args
        log.warning("Refused a stream: %s; it is %.200s", reason, came)
    finally:
        if skipped:
            log.warning("Call %s: skipped %d messages in all", call_sid, skipped)
        await save(call_sid, tracks, directory)

    # The answer to the close frame comes after what else has been sent: read that, too.
    closing = asyncio.create_task(websocket.close(code, reason))
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await websocket.recv()
    await closing


def authorize(connection, request, token):
    """Answer a handshake that does not carry exactly this bearer token with 401."""
    given = ", ".join(request.headers.get_all("Authorization"))
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        log.warning("Refused a connection: no or not the right bearer token")
        response = connection.respond(401, "A bearer token is needed.\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def addresses(host):
    """Return those addresses of `host` that this machine has, or else `host` itself.

    Where there is no IPv6, localhost may still stand for ::1, and asyncio gives up.
    """
    found = []
    for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(address)
            found.append(address[0])
    return found or host


async def serve(args, token):
    """Record streams until SIGINT (Ctrl-C) or SIGTERM, then save those in progress."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    # On Windows there is no SIGHUP, which comes when the terminal is closed, and no
    # loop.add_signal_handler. With nohup, SIGHUP is ignored, and stays so.
    signals = [
        signum
        for signum in signal.Signals
        if signum.name in ("SIGINT", "SIGTERM")
        or (signum.name == "SIGHUP" and signal.getsignal(signum) is not signal.SIG_IGN)
    ]
    for signum in signals:
        signal.signal(signum, lambda *_: loop.call_soon_threadsafe(stop.set))
    wanted = TRACKS if args.tracks == "both" else (args.tracks,)
    check = functools.partial(authorize, token=token) if token else None
    try:
        server = await websockets.serve(
            functools.partial(record, directory=args.directory, wanted=wanted),
            addresses(args.host),
            args.port,
            process_request=check,
            compression=None,
            max_size=2**16,  # bytes
            max_queue=0,  # reading stops while any message waits, as in a nap
            open_timeout=5,  # s
            close_timeout=2,  # s
        )
    except (OSError, OverflowError, UnicodeError) as error:
        text = f"Cannot listen on port {args.port} of {args.host}: {error}"
        sys.exit(f"{text}\nChoose another one with --port or --host.")
    host = f"[{args.host}]" if ":" in args.host else args.host
    port = server.sockets[0].getsockname()[1]
    access = "a token is needed" if token else "no AUTH_BEARER_TOKEN: open to anybody"
    log.info("Listening on ws://%s:%d (%s)", host, port, access)
    await stop.wait()
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)  # impatience must not cost a call
    server.close()
    # asyncio.run() cancels those who are not gone by then, which saves them as well.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), 3)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Record SignalWire calls to WAV files.",
        epilog="If AUTH_BEARER_TOKEN is set in the environment, streams need it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, choices = parser.add_argument, [*TRACKS, "both"]
    add("--host", default="localhost", help="address to listen on")
    add("--port", default=5000, type=int, help="port to listen on")
    add("--directory", default=".", type=Path, help="folder for the recordings")
    add("--tracks", default="both", choices=choices, help="what to save of a stream")
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        tempfile.TemporaryFile(dir=args.directory).close()
    except OSError as error:
        text = f"Cannot write to the folder {args.directory}: {error.strerror}"
        sys.exit(f"{text}\nChoose another one with --directory.")
    token = os.environ.get("AUTH_BEARER_TOKEN", "")
    if not TOKEN.fullmatch(token):
        sys.exit("AUTH_BEARER_TOKEN must be ASCII characters without spaces")
    asyncio.run(serve(args, token))
    log.info("Stopped, saved %d recordings", next(saved))


if __name__ == "__main__":
    main()
