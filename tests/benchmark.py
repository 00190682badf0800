"""Measure what recording costs, next to a bare receive loop and a plain handler.

Each is a process of its own, and this one plays the same calls to them in turn, at the
pace of phones and in a burst. How many microseconds a message takes is the machine's
affair; the ratios are the recorder's. Takes less than two minutes.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import random
import select
import selectors
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import websockets
from stream import CHUNK, HEADER, TRACKS, Client, Server, call, recording, start, stop
from websockets.frames import Frame, Opcode

RATE = 1000 // CHUNK  # chunks per second of a track
SIZE = 8 * CHUNK  # bytes of mu-law in a chunk
WARM_UP = 1  # s of a call that are not measured
MEASURED = 3  # s of a call that are
BURST_CALLS = 5
BURST = 120  # s of audio in each of them
BATCH = 1000  # messages that are sent at once in a burst
LATE = 0.05  # s that the player may be behind schedule
HOUR = 3600  # s
PING = 0.002  # s from a pong to the next ping

# asyncio reads into a new buffer of 256 KiB each time. glibc maps and unmaps memory for
# it in a fresh process, and takes it from the heap, which is cheaper, once such a block
# has been freed. This is the state of a server that has been up for a while.
UP_FOR_A_WHILE = {
    "MALLOC_MMAP_THRESHOLD_": "266240",
    "MALLOC_TRIM_THRESHOLD_": "532480",
}


async def bare(websocket):
    """Receive."""
    async for _ in websocket:
        pass


async def plain(websocket):
    """Receive, and keep the audio in lists."""
    tracks = {"inbound": [], "outbound": []}
    async for message in websocket:
        data = json.loads(message)
        if data["event"] == "media":
            payload = base64.b64decode(data["media"]["payload"])
            tracks[data["media"]["track"]].append(payload)


async def serve(handler):
    """Run a server with one of these handlers."""
    async with websockets.serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"Listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def serving(handler=None):
    """Run the recorder, or a server with the handler of this name, in a new folder."""
    options = (
        {"command": [sys.executable, __file__, "--serve", handler]} if handler else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), AUTH_BEARER_TOKEN="", **options, **UP_FOR_A_WHILE)
        server.usage = psutil.Process(server.process.pid)
        try:
            yield server
        finally:
            server.stop()


def cpu(server):
    """Return the CPU time that a server has used, in s."""
    return sum(server.usage.cpu_times()[:2])  # user and system


def frame(message):
    """Return the bytes that carry a text message."""
    return Frame(Opcode.TEXT, message.encode()).serialize(mask=True)


def make_audio(seconds, seed):
    """Return random bytes for each track."""
    rng = random.Random(seed)
    return {track: rng.randbytes(int(seconds * RATE) * SIZE) for track in TRACKS}


def media_frames(audio):
    """Return the frames of a call's media, inbound and outbound in turn."""
    return [frame(text) for _, text in call("", audio) if '"event": "media"' in text]


def check(server, call_sid, audio):
    """Return for each track in `audio` whether its file has exactly these bytes."""
    paths = {recording(server.directory, t, call_sid): d for t, d in audio.items()}
    return [p.exists() and p.read_bytes()[HEADER:] == d for p, d in paths.items()]


def play(server, name, frames):
    """Play calls at the pace of a phone, all at once, one for each list in `frames`.

    Returns the CPU time of a message, then for each call how long it took from its stop
    to the close, then how late this player was at the worst, all in s.
    """
    stopped, waited, late, used = {}, {}, 0, 0
    last = max(len(each) // 2 for each in frames)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        clients = [stack.enter_context(Client(server)) for _ in frames]
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        began = time.perf_counter()
        for tick in range(last + RATE):  # the last of them is closed within a second
            if tick in (WARM_UP * RATE, (WARM_UP + MEASURED) * RATE):
                used = cpu(server) - used
            for number, client in enumerate(clients):
                due = began + (tick + number / len(clients)) / RATE
                late = max(late, time.perf_counter() - due)
                time.sleep(max(due - time.perf_counter(), 0))
                if tick == 0:
                    client.send(start(f"{name}-{number}", TRACKS))
                for data in frames[number][2 * tick : 2 * tick + 2]:
                    client.socket.sendall(data)
                if 2 * tick == len(frames[number]):
                    client.send(stop())
                    stopped[client] = time.perf_counter()
                for key, _ in selector.select(0):
                    with contextlib.suppress(ConnectionError):
                        key.data.read()
                    if key.data.protocol.close_rcvd:
                        waited[key.data] = time.perf_counter()
                        selector.unregister(key.fileobj)
    waits = [waited[client] - stopped[client] for client in waited]
    return used / (len(clients) * 2 * MEASURED * RATE), waits, late


def burst(server, name, frames):
    """Play calls as fast as the server takes them, one for each list in `frames`.

    Returns the CPU time of a message in s.
    """
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in frames]
        for number, client in enumerate(clients):
            client.send(start(f"{name}-{number}", TRACKS))
            client.sync()
        used = cpu(server)
        for place in range(0, len(frames[0]), BATCH):
            for client, each in zip(clients, frames, strict=True):
                client.socket.sendall(b"".join(each[place : place + BATCH]))
        for client in clients:
            client.sync()
        used = cpu(server) - used
        for client in clients:
            client.send(stop())
    return used / sum(map(len, frames))


def compare(calls, rounds):
    """Compare the CPU times of a message; return whether each file is right."""
    # They hang up one after the other, in the second after what is measured.
    lengths = [WARM_UP + MEASURED + number / calls for number in range(calls)]
    audios = [make_audio(seconds, n) for n, seconds in enumerate(lengths)]
    frames = [media_frames(audio) for audio in audios]
    long_audios = [make_audio(BURST, n) for n in range(BURST_CALLS)]
    long_frames = [media_frames(audio) for audio in long_audios]
    paces, bursts, waits, checks, latest = [], [], [], [], 0
    with serving("bare") as one, serving("plain") as two, serving() as recorder:
        servers = one, two, recorder
        for number in range(rounds):
            costs = []
            for server in servers:
                cost, times, late = play(server, f"call-{number}", frames)
                costs.append(cost)
                latest = max(late, latest)
            waits += times  # of the recorder, which is the last
            paces.append(costs)
            bursts.append([burst(x, f"burst-{number}", long_frames) for x in servers])
        recorder.stop()
        for number in range(rounds):
            for prefix, each in ("call", audios), ("burst", long_audios):
                for call_number, audio in enumerate(each):
                    checks += check(recorder, f"{prefix}-{number}-{call_number}", audio)
    row("", "bare loop", "plain", "recorder", "to bare", "to plain")
    for label, costs in ("at the pace of calls", paces), ("in a burst", bursts):
        each = [f"{median(column) * 1e6:.1f}" for column in zip(*costs, strict=True)]
        each.append(f"{median(ours / other for other, _, ours in costs):.2f}")
        each.append(f"{median(ours / other for _, other, ours in costs):.2f}")
        row(f"CPU time of a message {label}, us", *each)
    each = [f"{wait * 1e3:.0f}" for wait in (median(waits), max(waits))]
    row("From stop to the files, median and worst, ms", *each)
    if latest > LATE:
        print(f"The player fell {latest * 1e3:.0f} ms behind: these are its limits.")
    return checks


def measure_hour():
    """Measure the memory of a one-hour call, and how long others wait for its file.

    Returns whether each file is right.
    """
    audio = make_audio(HOUR, "hour")
    frames, pings = media_frames(audio), []
    with serving() as recorder, Client(recorder) as hour, Client(recorder) as other:
        hour.send(start("hour", TRACKS))
        hour.sync()
        before = recorder.usage.memory_info().rss
        for batch in (frames[n : n + BATCH] for n in range(0, len(frames), BATCH)):
            hour.socket.sendall(b"".join(batch))
        hour.sync()
        growth = recorder.usage.memory_info().rss - before
        hour.send(stop())
        stopped = time.perf_counter()
        while not select.select([hour.socket], [], [], PING)[0]:
            pinged = time.perf_counter()
            other.sync()
            pings.append(time.perf_counter() - pinged)
        waited = time.perf_counter() - stopped
        hour.wait_closed()
        checks = check(recorder, "hour", audio)
    size = sum(map(len, audio.values()))
    row("Memory of a byte of audio in progress, bytes", f"{growth / size:.2f}")
    row("From stop to the files of a one-hour call, ms", f"{waited * 1e3:.0f}")
    row("Worst ping of another connection meanwhile, ms", f"{max(pings) * 1e3:.1f}")
    return checks


def row(label, *values):
    print(f"{label:<48}", *(f"{value:>9}" for value in values), flush=True)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--calls", default=100, type=int, help="two-track calls at once"
    )
    parser.add_argument(
        "--rounds", default=5, type=int, help="how many rounds there are"
    )
    parser.add_argument("--serve", choices=["bare", "plain"], help=argparse.SUPPRESS)
    args, _ = parser.parse_known_args()
    if args.serve:
        asyncio.run(serve(globals()[args.serve]))
        return
    if min(args.calls, args.rounds) < 1:
        sys.exit("--calls and --rounds must be 1 or more")
    print("Each server has its memory as one has that has been up for a while.")
    checks = compare(args.calls, args.rounds)
    checks += measure_hour()
    row("Files with every byte, of all files", sum(checks), len(checks))


if __name__ == "__main__":
    main()
