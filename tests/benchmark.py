"""Measure what recording costs, next to a server that only receives.

Each runs as a process of its own, and this one plays the same calls to them in turn: how
many microseconds a message takes is the machine's affair, how many times those of a bare
receive loop is the recorder's. Takes less than two minutes.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import select
import selectors
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import websockets
from simulate_call import CHUNK, TRACKS, call, connected, start, stop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

APP = Path(__file__).parents[1] / "app.py"
PATIENCE = 20  # s to wait for what takes milliseconds on an idle machine
RATE = 1000 // CHUNK  # chunks per second of a track
SIZE = 8 * CHUNK  # bytes of mu-law in a chunk
HEADER = 58  # bytes before the audio in a mu-law WAV file

VOICES = 7  # different audios, which the calls take in turn
WARM_UP = 6  # s of the recorder's calls that are not measured
LATE = 0.05  # s that the player may be behind schedule
IDLE = 500  # connections without a call
HOUR = 3600  # s
PING = 0.002  # s from a pong to the next ping
CLIMB_ROUNDS, CLIMB_CALLS, CLIMB_SECONDS = 4, 10, 125  # 20 MB of audio a round


async def receive():
    """Run the bare receive loop."""

    async def handler(websocket):
        async for _ in websocket:
            pass

    async with websockets.serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"Listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        await server.serve_forever()


class Server:
    """A server: its process, its url, and the folder it runs in."""

    def __init__(self, process, url, folder):
        self.process, self.url, self.folder = process, url, folder

    def cpu(self):
        """Return the CPU time it has used, in s."""
        return sum(self.process.cpu_times()[:2])  # user and system

    def memory(self):
        """Return its resident bytes, once it has come to rest."""
        time.sleep(0.5)
        return self.process.memory_info().rss

    def check(self, call_sid, audio):
        """Return for each track in `audio` whether its file has exactly these bytes."""
        paths = {t: self.folder / f"{t.capitalize()}-{call_sid}.wav" for t in audio}
        return [
            p.exists() and p.read_bytes()[HEADER:] == audio[t] for t, p in paths.items()
        ]


@contextlib.contextmanager
def serving(*command):
    """Run a server, the recorder if there is no other `command`, in a new folder."""
    command = command or (APP, "--host", "127.0.0.1", "--port", "0")
    environment = {k: v for k, v in os.environ.items() if k != "AUTH_BEARER_TOKEN"}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:
        path = Path(folder, "log")  # a pipe would have to be emptied all the time
        log = cleanup.enter_context(path.open("w"))
        command = [sys.executable, *command]
        process = psutil.Popen(command, cwd=folder, env=environment, stderr=log)
        cleanup.callback(process.wait, PATIENCE)
        cleanup.callback(process.terminate)
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"Listening on (\S+).*\n", path.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server does not start: {path.read_text()}")
            time.sleep(0.01)
        yield Server(process, found[1], Path(folder))


class Stream:
    """A WebSocket on a bare socket, which takes frames that were made beforehand."""

    def __init__(self, url):
        uri = parse_uri(url)
        self.socket = socket.create_connection((uri.host, uri.port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send, self.close = self.socket.sendall, self.socket.close
        self.protocol = ClientProtocol(uri)
        self.stopped = None  # s on the clock when stop was sent
        self.waited = None  # s from then until the server closed, having saved
        self.protocol.send_request(self.protocol.connect())
        self.wait_for(lambda event: isinstance(event, Response))

    def flush(self):
        self.send(b"".join(self.protocol.data_to_send()))

    def read(self):
        """Return the events that come next, after an answer to those that need one."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("The server has hung up")
        self.protocol.receive_data(data)
        self.flush()
        if self.protocol.close_rcvd:
            self.waited = time.perf_counter() - self.stopped
        return self.protocol.events_received()

    def wait_for(self, condition):
        self.flush()
        while not any(condition(event) for event in self.read()):
            pass

    def ping(self):
        """Return how long the server takes to read what was sent and to answer, in s."""
        began = time.perf_counter()
        self.protocol.send_ping(b"")
        self.wait_for(lambda event: event.opcode is Opcode.PONG)
        return time.perf_counter() - began

    def start(self, call_sid):
        self.send(frame(connected()) + frame(start(call_sid, TRACKS)))

    def stop(self):
        self.stopped = time.perf_counter()
        self.send(frame(stop()))

    def finish(self):
        """Wait, after stop, for the server to save the call and to close."""
        while self.waited is None:
            self.read()


def frame(message):
    """Return the bytes that carry a text message."""
    return Frame(Opcode.TEXT, message.encode()).serialize(mask=True)


def media_frames(audio):
    """Yield the frames of a call's media, inbound and outbound in turn."""
    return (frame(m) for _, m in call("any", audio) if '"event": "media"' in m)


def make_audio(seconds, seed):
    """Return random bytes for each track."""
    rng = random.Random(seed)
    return {track: rng.randbytes(seconds * RATE * SIZE) for track in TRACKS}


def row(label, *values):
    print(f"{label:<52}", *(f"{value:>9}" for value in values), flush=True)


def push(streams, audio):
    """Send `audio` on each of the streams, as fast as the server takes it."""
    frames = media_frames(audio)
    while batch := b"".join(itertools.islice(frames, 1000)):
        for stream in streams:
            stream.send(batch)
        for stream in streams:
            stream.ping()


def play(server, prefix, frames, lengths, marks, saves):
    """Play calls to `server` in real time, all at once; wait for them if it `saves`.

    `lengths` are those of the calls, in chunks of a track; the calls take the lists in
    `frames` in turn. Returns the server's CPU times at the `marks`, in chunks, then for
    each call how long it waited for its file, then how late the player was, all in s.
    """
    used, late = [], 0
    with contextlib.ExitStack() as cleanup, selectors.DefaultSelector() as selector:
        streams = [Stream(server.url) for _ in lengths]
        for stream in streams:
            cleanup.callback(stream.close)
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        began = time.perf_counter()
        for tick in range(max(lengths) + RATE):  # the last hear within a second
            if tick in marks:
                used.append(server.cpu())
            for number, (stream, length) in enumerate(
                zip(streams, lengths, strict=True)
            ):
                due = began + (tick + number / len(lengths)) / RATE
                early = due - time.perf_counter()
                late = max(late, -early)
                time.sleep(max(early, 0))
                if tick == 0:
                    stream.start(f"{prefix}-{number}")
                if tick < length:
                    for data in frames[number % VOICES][2 * tick : 2 * tick + 2]:
                        stream.send(data)
                elif tick == length:
                    stream.stop()
                for key, _ in selector.select(0):
                    key.data.read()
                    if key.data.waited is not None:
                        selector.unregister(key.fileobj)
        if saves:
            for stream in streams:
                stream.finish()
    return used, [stream.waited for stream in streams], late


def measure_cpu(calls, seconds, rounds):
    """Compare the CPU time that a message takes; return whether each file is right."""
    audios = [make_audio(WARM_UP + seconds + 1, seed) for seed in range(VOICES)]
    frames = [list(media_frames(audio)) for audio in audios]
    rate = RATE * len(TRACKS)  # messages per second of a call
    ours, theirs, waits, checks, latest = [], [], [], [], 0
    with serving() as recorder, serving(__file__, "--bare") as bare:
        for number in range(rounds):
            # The recorder reads a young call without naps, which is not measured.
            for server, warm_up, costs in (recorder, WARM_UP, ours), (bare, 1, theirs):
                end = (warm_up + seconds) * RATE
                # They hang up one after the other in the second after it.
                lengths = [end + RATE * call // calls for call in range(calls)]
                prefix, marks = f"call-{number}", (warm_up * RATE, end)
                used, times, late = play(
                    server, prefix, frames, lengths, marks, server is recorder
                )
                costs.append((used[1] - used[0]) / (calls * seconds * rate))
                latest = max(late, latest)
                if server is recorder:
                    waits += times
                    for call, length in enumerate(lengths):
                        audio = audios[call % VOICES].items()
                        audio = {track: data[: length * SIZE] for track, data in audio}
                        checks += recorder.check(f"{prefix}-{call}", audio)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    costs = median(ours), median(theirs)
    row("", "recorder", "bare loop", "ratio")
    each = [f"{cost * 1e6:.1f}" for cost in costs]
    row("CPU time of a message, us", *each, f"{median(ratios):.2f}")
    row("Two-track calls a core could carry", *(f"{1 / c / rate:.0f}" for c in costs))
    row("Ratio in each round", *(f"{ratio:.2f}" for ratio in ratios))
    each = [f"{wait * 1e3:.0f}" for wait in (median(waits), max(waits))]
    row("From stop to file, median and worst, ms", *each)
    if latest > LATE:
        print(f"The player fell {latest * 1e3:.0f} ms behind: these are its limits.")
    return checks


def measure_idle():
    """Measure the memory of a connection without a call."""
    with serving() as recorder, contextlib.ExitStack() as cleanup:
        # The first loads what is loaded only once.
        cleanup.callback(Stream(recorder.url).close)
        before = recorder.memory()
        for _ in range(IDLE):
            cleanup.callback(Stream(recorder.url).close)
        growth = recorder.memory() - before
    row("Memory of an idle connection, KiB", f"{growth / IDLE / 2**10:.1f}")


def measure_hour():
    """Measure the memory of a one-hour call, and how long another waits for its file.

    Returns whether each file is right.
    """
    audio = make_audio(HOUR, "hour")
    with serving() as recorder, contextlib.ExitStack() as cleanup:
        hour, other = Stream(recorder.url), Stream(recorder.url)
        cleanup.callback(hour.close)
        cleanup.callback(other.close)
        hour.start("hour")
        hour.ping()
        before = recorder.memory()
        push([hour], audio)
        growth = recorder.memory() - before
        hour.stop()
        pings = []
        while not select.select([hour.socket], [], [], PING)[0]:
            pings.append(other.ping())
        hour.finish()
        checks = recorder.check("hour", audio)
    size = sum(map(len, audio.values()))
    row("Memory of a byte of audio in progress, bytes", f"{growth / size:.2f}")
    row("From stop to file of a one-hour call, ms", f"{hour.waited * 1e3:.0f}")
    row("Worst ping of another stream meanwhile, ms", f"{max(pings) * 1e3:.1f}")
    return checks


def measure_climb():
    """Measure the memory before and after each of some rounds of calls.

    Returns whether each file is right.
    """
    checks = []
    with serving() as recorder:
        sizes = [recorder.memory()]
        for number in range(CLIMB_ROUNDS):
            audio = make_audio(CLIMB_SECONDS, number)
            names = [f"round-{number}-{call}" for call in range(CLIMB_CALLS)]
            streams = [Stream(recorder.url) for _ in names]
            with contextlib.ExitStack() as cleanup:
                for stream, name in zip(streams, names, strict=True):
                    cleanup.callback(stream.close)
                    stream.start(name)
                push(streams, audio)
                for stream in streams:
                    stream.stop()
                for stream in streams:
                    stream.finish()
            sizes.append(recorder.memory())
            checks += itertools.chain(*(recorder.check(n, audio) for n in names))
    row("Memory at first and after rounds of 20 MB, MiB", *(s // 2**20 for s in sizes))
    return checks


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--calls", default=100, type=int, help="two-track calls at once")
    add("--seconds", default=3, type=int, help="how long a round is measured")
    add("--rounds", default=5, type=int, help="how many rounds there are")
    add("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.calls, args.seconds, args.rounds) < 1:
        sys.exit("--calls, --seconds and --rounds must be 1 or more")
    if args.bare:
        asyncio.run(receive())
        return
    checks = measure_cpu(args.calls, args.seconds, args.rounds)
    measure_idle()
    checks += measure_hour() + measure_climb()
    row("Files with every byte, of all files", sum(checks), len(checks))


if __name__ == "__main__":
    main()
