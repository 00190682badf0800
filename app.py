"""Record SignalWire phone calls: save the audio of each <Stream> as WAV files."""

import argparse
import asyncio
import base64
import contextlib
import hmac
import itertools
import json
import logging.handlers
import os
import queue
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pywav
import websockets

TRACKS = ("inbound", "outbound")
SAFE_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # can be part of a file name

# Keys: the name in start.mediaFormat without "audio/" and "x-". Values: the name in the
# log, the format code in a WAV file, and one sample of silence.
ENCODINGS = {
    "mulaw": ("mu-law", 7, b"\xff"),
    "pcmu": ("mu-law", 7, b"\xff"),
    "alaw": ("A-law", 6, b"\xd5"),
    "pcma": ("A-law", 6, b"\xd5"),
    "l16": ("L16", 1, b"\0\0"),  # little-endian, as in a WAV file
}

SHORTEST_GAP = 200  # ms. Where more audio is missing, silence takes its place.
CLOCK_TOLERANCE = 2000  # ms. A timestamp further ahead of our clock is not believed.
log = logging.getLogger("app")
recording = set()  # the connections whose call has begun and is not saved yet


class Refused(Exception):
    """A stream cannot be recorded. Holds close code, reason, and what `start` has."""


class Track:
    """One track of a call: its audio so far, and how to save it."""

    def __init__(self, name, call_sid, encoding, sample_rate, wanted):
        self.stem = f"{name.capitalize()}-{call_sid}"  # name of its file without .wav
        _, self.format_code, silent_sample = encoding
        self.sample_rate = sample_rate  # Hz
        self.sample_width = len(silent_sample)  # bytes
        self.byte_rate = sample_rate * self.sample_width  # bytes per second
        self.is_wanted = name in wanted
        self.began = time.monotonic()  # s
        self.block = silent_sample * (sample_rate // 50)  # 20 ms of silence
        self.chunks = []
        self.length = 0  # bytes in the chunks
        self.silence = 0  # bytes of them that stand for missing audio

    def append(self, payload, timestamp):
        """Append `payload`, which begins `timestamp` ms after `start`; 0 is unknown."""
        gap = timestamp - self.length * 1000 // self.byte_rate  # ms missing so far
        if gap >= SHORTEST_GAP:
            elapsed = (time.monotonic() - self.began) * 1000  # ms
            if timestamp <= elapsed + CLOCK_TOLERANCE:
                missing = gap * self.sample_rate // 1000 * self.sample_width  # bytes
                count, rest = divmod(missing, len(self.block))
                # One object many times: this takes hardly any memory until write().
                self.chunks += [self.block] * count + [self.block[:rest]]
                self.length += missing
                self.silence += missing
        self.chunks.append(payload)
        self.length += len(payload)

    def write(self, folder, mode):
        """Write a new file in `folder` with the permissions `mode`; return its path.

        Until it is complete and on the disk, its name ends in .part. Creating that file
        claims the name: only one process can do so, the others take the next number.
        """
        for number in itertools.count(1):
            suffix = f"-{number}" if number > 1 else ""
            path = folder / f"{self.stem}{suffix}.wav"
            part = path.with_suffix(".wav.part")
            if os.path.lexists(path):
                continue
            try:
                part.touch(mode, exist_ok=False)
            except FileExistsError:
                continue
            if os.path.lexists(path):  # It was finished after the first look.
                part.unlink()
                continue
            try:
                header = 1, self.sample_rate, 8 * self.sample_width, self.format_code
                with contextlib.closing(pywav.WavWrite(part, *header)) as wav:
                    wav.write(b"".join(self.chunks))
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                return part.rename(path)
            except Exception:
                part.unlink(missing_ok=True)
                raise

    async def save(self, folders):
        """Save the track, however long that takes; log where it is, and new problems.

        `folders` are pairs of a folder and the permissions of files in it. The first is
        tried every second, and the others, too, from the fourth try on.
        """
        if not self.length:
            why = "no audio came" if self.is_wanted else "not in --tracks"
            log.info("No %s.wav: %s", self.stem, why)
            return
        seconds, silence = self.length / self.byte_rate, self.silence / self.byte_rate
        note = f" (no audio came for {silence:.1f} s of it)" if silence else ""
        problems = {}
        for attempt in itertools.count():
            for folder, mode in folders if attempt >= 3 else folders[:1]:
                try:
                    path = await asyncio.to_thread(self.write, folder, mode)
                    log.info("Saved %s, %.1f s%s", path, seconds, note)
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, try again
                    problem = f"{self.stem}.wav in {folder}: {error!r}"
                    if problem != problems.get(folder):
                        problems[folder] = problem
                        log.error("Could not save %s, trying again", problem)
            await asyncio.sleep(1)


def new_tracks(start, wanted):
    """Return the callSid in `start`, and new tracks by name; or raise Refused."""
    # Whether the stream of a conference has a callSid is not documented.
    sid = start.get("callSid") or start.get("streamSid")
    if not isinstance(sid, str) or not SAFE_SID.fullmatch(sid):
        reason = "callSid must be 1 to 64 letters, digits, - or _"
        raise Refused(websockets.CloseCode.POLICY_VIOLATION, reason, sid)
    encoding = None
    match media_format := start.get("mediaFormat"):
        case None:
            encoding, rate = ENCODINGS["mulaw"], 8000
        case {"encoding": str(name), "sampleRate": int(rate), **others}:
            if 8000 <= rate <= 48000 and others.get("channels", 1) == 1:
                name = name.lower().removeprefix("audio/").removeprefix("x-")
                encoding = ENCODINGS.get(name)
    if encoding is None:
        reason = f"mediaFormat must be {', '.join(ENCODINGS)}, 8 to 48 kHz, 1 channel"
        raise Refused(websockets.CloseCode.UNSUPPORTED_DATA, reason, media_format)
    # %.500r puts what a stranger sent on one line, and cuts it off.
    said = {key: start.get(key) for key in ("tracks", "customParameters")}
    log.info("%s: started, %s, %d Hz, %.500r", sid, encoding[0], rate, said)
    return sid, {name: Track(name, sid, encoding, rate, wanted) for name in TRACKS}


def parse(message, tracks):
    """Return the event in `message` and what it carries. `tracks`: empty before start.

    `start` carries a dict; `media` carries a track, the payload, and a timestamp in ms,
    0 if unknown. Raises KeyError, TypeError, ValueError, RecursionError for nonsense.
    """
    data = json.loads(message.decode())
    event = data["event"]
    if event == "media":
        if not tracks:
            raise ValueError("media before start")
        media = data["media"]
        track = tracks[media["track"]]
        payload = base64.b64decode(media["payload"], validate=True)
        if len(payload) % track.sample_width:
            raise ValueError("payload ends within a sample")
        digits = str(media.get("timestamp"))[:20]  # int() takes 4300 at most.
        return event, (track, payload, int(digits) if digits.isdecimal() else 0)
    if event == "start":
        if tracks:
            raise ValueError("a second start")
        return event, dict(data.get("start") or {})
    return event, None


async def record(websocket, args):
    """Record a stream and save it, however it ends. The library then closes it."""
    call_sid, tracks, skipped = "unknown call", {}, 0
    try:
        while True:
            message = await websocket.recv(decode=False)
            try:
                event, fields = parse(message, tracks)
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                skipped += 1
                if skipped == 1:  # A line for each of them could fill the disk.
                    log.warning("%s: skipped %.500r, %.200r", call_sid, message, error)
                continue
            if event == "media":
                track, payload, timestamp = fields
                if track.is_wanted:
                    track.append(payload, timestamp)
            elif event == "start":
                call_sid, tracks = new_tracks(fields, args.wanted)
                recording.add(websocket)
            elif event == "stop":
                break
    except websockets.ConnectionClosed as closed:
        if tracks and not isinstance(closed, websockets.ConnectionClosedOK):
            log.warning("%s: the line dropped: %.500r", call_sid, str(closed))
    except Refused as refused:
        close_code, reason, value = refused.args
        log.warning("Refused a stream: %s, not %.500r", reason, value)
        await websocket.close(close_code, reason)
    finally:
        if skipped > 1:
            log.warning("%s: skipped %d messages in all", call_sid, skipped)
        await asyncio.gather(*(track.save(args.folders) for track in tracks.values()))
        recording.discard(websocket)


class Connection(websockets.ServerConnection):
    """A connection that is cheap to read, and leaves enough of the machine for others.

    Waking up for a message costs more than handling it, so in a call we pause after a
    read. Not after a large one: more is waiting. Nor if the library has paused, as its
    queue is full: our resuming would overfill it.
    """

    # In a pause, two tracks send 20 messages: 7 KB, or 29 KB of L16 at 24 kHz. That is
    # no large read, and far less than fills the queue (max_queue).
    PAUSE = 0.2  # s
    LARGE = 2**15  # bytes in one read
    descriptor_limit = sys.maxsize  # unless main() finds one
    last_warning = float("-inf")  # about any connection, in s on the loop's clock

    def connection_made(self, transport):
        super().connection_made(transport)
        # A descriptor gets the lowest free number, which shows how many are in use. Half
        # are for files, and for the `backlog` that asyncio accepts before calling this.
        if transport.get_extra_info("socket").fileno() >= self.descriptor_limit // 2:
            transport.abort()
            if self.loop.time() > Connection.last_warning + 60:
                Connection.last_warning = self.loop.time()
                log.warning("Dropped connections: half of all descriptors are in use")

    def data_received(self, data):
        super().data_received(data)
        if self in recording and len(data) < self.LARGE and self.transport.is_reading():
            self.transport.pause_reading()
            # If the connection has been closed by then, this does nothing.
            self.loop.call_later(self.PAUSE, self.transport.resume_reading)

    def pause_writing(self):
        """asyncio calls this when more than write_limit of pongs are left unread."""
        self.transport.abort()
        log.warning("Dropped a connection that sends pings, but reads no pongs")


async def answer(connection, request, token):
    """Return None to let a stream in, or the HTTP response to any other request."""
    if connection.protocol.eof_sent:
        # Garbage followed the request, so the library hung up. Wait for the end: before
        # it, any response would log an error; after it, None lets nobody in.
        connection.transport.abort()
        await connection.wait_closed()
        return None
    if "Upgrade" not in request.headers:
        return connection.respond(200, 'Recorder running: <Stream url="wss://...">\n')
    given = ", ".join(request.headers.get_all("Authorization"))
    if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        log.warning("Refused a connection: missing or wrong bearer token")
        response = connection.respond(401, "A bearer token is needed.\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def existing_addresses(host):
    """Yield the addresses of `host` that this machine has; localhost may lack ::1."""
    # Before Python 3.13, asyncio does not listen at all if it cannot use one of them.
    for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(address)
            yield socket.getnameinfo(address, socket.NI_NUMERICHOST)[0]


async def serve(args):
    """Record streams until a signal, then save the calls in progress.

    Leaving `async with` closes all connections and waits for each record(), so for each
    file. A silent peer delays it by close_timeout, a slow handshake by open_timeout.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(8))
    # All threads start now, as the barrier keeps each one busy. A later submit() that
    # cannot start one would raise, but keep the work, and save()'s retry does it twice.
    barrier = threading.Barrier(8)
    await asyncio.gather(*(asyncio.to_thread(barrier.wait, 10) for _ in range(8)))
    for signum in args.signals:
        signal.signal(signum, lambda *_: stop.set())
    try:
        server = await websockets.serve(
            lambda websocket: record(websocket, args),
            list(existing_addresses(args.host)) or args.host,  # serve() raises
            args.port,
            process_request=lambda *pair: answer(*pair, args.token),
            create_connection=Connection,
            compression=None,  # which costs CPU time and saves little
            open_timeout=5,  # s
            ping_timeout=130,  # s. TCP may notice only at 120 s that 60 s are over.
            close_timeout=2,  # s
            max_queue=2**8,  # messages
            write_limit=2**12,  # bytes
            backlog=min(Connection.descriptor_limit // 16, 100),  # accepted at once
        )
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"Cannot listen on --port {args.port} of {args.host}: {error}")
    async with server:
        host = f"[{args.host}]" if ":" in args.host else args.host
        port = server.sockets[0].getsockname()[1]
        folder = args.directory.absolute()
        log.info("Listening on ws://%s:%d and saving to %s", host, port, folder)
        if not args.token:
            log.info("No AUTH_BEARER_TOKEN: whoever finds the address can send audio")
        while not stop.is_set():
            await asyncio.sleep(0.1)  # A signal need not wake up an idle loop.
        for signum in args.signals:
            signal.signal(signum, signal.SIG_IGN)  # A second Ctrl-C does nothing.
        log.info("Saving the calls in progress: %d", len(recording))
        loop.call_later(10, log.error, "Still saving: kill -9 would lose those calls")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Record SignalWire calls. Streams need AUTH_BEARER_TOKEN, if set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="localhost", help="address to listen on")
    add("--port", default=5000, type=int, help="port to listen on")
    add("--directory", default=".", type=Path, help="folder for the recordings")
    add("--tracks", default="both", choices=[*TRACKS, "both"], help="tracks to save")
    args = parser.parse_args()
    args.wanted = TRACKS if args.tracks == "both" else [args.tracks]
    args.token = os.environ.get("AUTH_BEARER_TOKEN", "")
    if not args.token.isascii() or not args.token.isprintable() or " " in args.token:
        sys.exit("AUTH_BEARER_TOKEN must be ASCII characters without spaces")
    try:
        tempfile.TemporaryFile(dir=args.directory).close()
    except OSError as error:
        sys.exit(f"Cannot write to --directory {args.directory}: {error.strerror}")
    args.folders = [(args.directory, 0o666)]  # permissions before the umask
    with contextlib.suppress(OSError):  # There may be no temporary folder.
        args.folders.append((Path(tempfile.gettempdir()), 0o600))  # only for the owner
    with contextlib.suppress(ImportError):  # Windows has no limit of descriptors.
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        Connection.descriptor_limit = min(hard, 10240)  # plenty, and the most on macOS
        resource.setrlimit(resource.RLIMIT_NOFILE, (Connection.descriptor_limit, hard))
    args.signals = [signal.SIGINT, signal.SIGTERM]
    # SIGHUP means that the terminal was closed. Windows has none, nohup ignores it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        args.signals.append(signal.SIGHUP)
    # A thread writes the log: if nobody reads that, only the thread is blocked.
    feed = logging.handlers.QueueHandler(queue.SimpleQueue())
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", handlers=[feed])
    listener = logging.handlers.QueueListener(feed.queue, logging.StreamHandler())
    listener.start()
    logging.raiseExceptions = False  # What cannot be formatted costs only its own line.
    log.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # no send() warnings
    asyncio.run(serve(args))
    log.info("Stopped")
    listener.stop()


if __name__ == "__main__":
    main()
