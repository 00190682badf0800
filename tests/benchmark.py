"""Measure what recording costs, next to a bare receive loop and a plain handler.

Each is a process of its own, and this one plays the same calls to them in turn, at the
pace of phones and in a burst. How many microseconds a message takes is the machine's
affair; the ratios are the recorder's. Takes less than two minutes.
"""

import argparse
import base64
import contextlib
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil
import websockets
from stream import CHUNK, HEADER, TRACKS, Client, Server, call, recording, start, stop
from websockets.frames import Frame, Opcode

RATE = 1000 // CHUNK  # chunks per second of a track
SIZE = 8 * CHUNK  # bytes of mu-law in a chunk
WARM_UP = 1  # s of a call at the pace of a phone that are not measured
MEASURED = 3  # s of it that are
BURST = 120  # s of audio in the calls of a burst
BURST_CALLS = 5
BATCH = 1000  # messages that are sent at once in a burst
HOUR = 3600  # s
PING = 0.002  # s from a pong to the next ping

# asyncio reads into a new buffer of 256 KiB each time. glibc maps and unmaps memory for
# it in a fresh process, and takes it from the heap, which is cheaper, once such a block
# has been freed. This is the state of a server that has been up for a while.
WARM = {"MALLOC_MMAP_THRESHOLD_": "266240", "MALLOC_TRIM_THRESHOLD_": "532480"}


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
    """Run a server with one of these handlers, which never hang up."""
    async with websockets.serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"Listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def serving(handler=None):
    """Run the recorder, or a server with the handler of this name, in a new folder."""
    options = WARM | {"PYTHONPATH": str(Path(__file__).parent)}
    if handler:
        run = f"import asyncio, benchmark as b; asyncio.run(b.serve(b.{handler}))"
        options["command"] = [sys.executable, "-c", run]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), AUTH_BEARER_TOKEN="", **options)
        server.usage = psutil.Process(server.process.pid)
        server.hangs_up = not handler
        try:
            yield server
        finally:
            server.stop()


def cpu(server):
    """Return the CPU time that a server has used, in s."""
    return sum(server.usage.cpu_times()[:2])  # user and system


def make_audio(seconds):
    """Return random bytes for each track, and the frames that carry them in turn."""
    rng = random.Random(seconds)
    audio = {track: rng.randbytes(seconds * RATE * SIZE) for track in TRACKS}
    texts = [text for _, text in call("", audio) if '"event": "media"' in text]
    return audio, [Frame(Opcode.TEXT, x.encode()).serialize(mask=True) for x in texts]


def check(server, name, audio, counts):
    """Assert that each track of the calls was saved, as many chunks as `counts` has."""
    for number, count in enumerate(counts):
        for track, data in audio.items():
            path = recording(server.directory, track, f"{name}-{number}")
            assert path.read_bytes()[HEADER:] == data[: count * SIZE], path


@contextlib.contextmanager
def begin(server, name, count):
    """Begin calls, yield their clients, and drop the lines in the end."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(count)]
        for number, client in enumerate(clients):
            client.send(start(f"{name}-{number}", TRACKS))
            client.sync()
        yield clients


def hang_up(client):
    """End a call; return how long it takes until it is saved, in s."""
    began = time.perf_counter()
    client.send(stop())
    client.wait_closed()
    return time.perf_counter() - began


def play(server, name, frames, counts, waits):
    """Play calls at the pace of a phone, one with so many chunks for each in `counts`.

    Returns the CPU time of a message in s. If the server saves and hangs up, adds to
    `waits` how long that took for each call.
    """
    calls, ends = len(counts), []
    with begin(server, name, calls) as clients, ThreadPoolExecutor(calls) as pool:
        used, began = 0, time.perf_counter()
        for tick in range(counts[-1] + 1):
            if tick in (WARM_UP * RATE, (WARM_UP + MEASURED) * RATE):
                used = cpu(server) - used
                late = time.perf_counter() - began - tick / RATE
            for number, (client, count) in enumerate(zip(clients, counts, strict=True)):
                due = began + (tick + number / calls) / RATE
                time.sleep(max(due - time.perf_counter(), 0))
                if tick < count:
                    client.socket.sendall(frames[2 * tick])
                    client.socket.sendall(frames[2 * tick + 1])
                elif tick == count and server.hangs_up:
                    ends.append(pool.submit(hang_up, client))
        if late > 2 / RATE:
            print(f"The player was {late:.2f} s late: these are its limits.")
        waits += [end.result() for end in ends]
    return used / (calls * 2 * MEASURED * RATE)


def burst(server, name, frames):
    """Play calls as fast as the server takes them; return the CPU time of a message."""
    with begin(server, name, BURST_CALLS) as clients:
        used = cpu(server)
        for place in range(0, len(frames), BATCH):
            for client in clients:
                client.socket.sendall(b"".join(frames[place : place + BATCH]))
        for client in clients * 2:  # a pong comes before all that is read is handled
            client.sync()
        used = cpu(server) - used
    return used / (BURST_CALLS * len(frames))


def compare(calls, rounds):
    """Compare the CPU times of a message."""
    audio, frames = make_audio(BURST)
    # They hang up one after the other, in the second after what is measured.
    last = (WARM_UP + MEASURED) * RATE
    counts = [last + RATE * number // calls for number in range(calls)]
    paces, bursts, waits = [], [], []
    with serving("bare") as one, serving("plain") as two, serving() as recorder:
        servers = one, two, recorder
        for number in range(rounds):
            name = f"call-{number}"
            paces.append([play(x, name, frames, counts, waits) for x in servers])
            bursts.append([burst(x, f"burst-{number}", frames) for x in servers])
        recorder.stop()
        for number in range(rounds):
            check(recorder, f"call-{number}", audio, counts)
            check(recorder, f"burst-{number}", audio, [BURST * RATE] * BURST_CALLS)
    row("", "bare loop", "plain", "recorder", "to bare", "to plain")
    for label, costs in ("at the pace of calls", paces), ("in a burst", bursts):
        each = [f"{median(column) * 1e6:.1f}" for column in zip(*costs, strict=True)]
        each += [f"{median(cost[2] / cost[n] for cost in costs):.2f}" for n in (0, 1)]
        row(f"CPU time of a message {label}, us", *each)
    each = [f"{wait * 1e3:.0f}" for wait in (median(waits), max(waits))]
    row("From stop to the files, median and worst, ms", *each)


def measure_hour():
    """Measure the memory of a one-hour call, and how long others wait for its file."""
    (audio, frames), pings = make_audio(HOUR), []
    with (
        serving() as recorder,
        Client(recorder) as other,
        begin(recorder, "hour", 1) as (hour,),
        ThreadPoolExecutor(1) as pool,
    ):
        before = recorder.usage.memory_info().rss
        for place in range(0, len(frames), BATCH):
            hour.socket.sendall(b"".join(frames[place : place + BATCH]))
        hour.sync()
        growth = recorder.usage.memory_info().rss - before
        end = pool.submit(hang_up, hour)
        while not end.done():
            began = time.perf_counter()
            other.sync()
            pings.append(time.perf_counter() - began)
            time.sleep(PING)
        check(recorder, "hour", audio, [HOUR * RATE])
    size = sum(map(len, audio.values()))
    row("Memory of a byte of audio in progress, bytes", f"{growth / size:.2f}")
    row("From stop to the files of a one-hour call, ms", f"{end.result() * 1e3:.0f}")
    row("Worst ping of another connection meanwhile, ms", f"{max(pings) * 1e3:.1f}")


def row(label, *values):
    print(f"{label:<48}", *(f"{value:>9}" for value in values), flush=True)


def main():
    """Run the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--calls", default=100, type=int, help="two-track calls")
    parser.add_argument("--rounds", default=5, type=int, help="how many of them")
    args = parser.parse_args()
    if min(args.calls, args.rounds) < 1:
        sys.exit("--calls and --rounds must be 1 or more")
    compare(args.calls, args.rounds)
    measure_hour()
    print("Every file has every byte.")


if __name__ == "__main__":
    main()
