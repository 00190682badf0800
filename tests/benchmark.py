"""Measure what recording costs, next to a bare receive loop and a plain handler.

Each is a process of its own. In each round, they get the same calls in turn: at the pace
of calls, which is 100 messages a second, and in a burst, which is as fast as they can.
"""

import argparse
import base64
import contextlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

try:
    import psutil
    import websockets
    from recorder import APP, HEADER, Client, Server
    from signalwire import TRACKS, call_messages, recording_path, start, stop
    from websockets.frames import Frame, Opcode
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing: pip install -r tests/requirements.txt")

CHUNK_SIZE = 160  # bytes, which are 20 ms of audio
SECOND = 50  # chunks of a track; so are the other parts of a call:
WARM_UP, MEASURED = 1 * SECOND, 3 * SECOND  # at the pace of calls
BURST, HOUR = 120 * SECOND, 3600 * SECOND
BURST_CALLS = 5
BATCH = 1000  # messages of a call that are sent at once in a burst

# For each read, asyncio allocates 256 KiB. At first, glibc gets them from the system each
# time, which is slow. Once it has freed all of them at a time, as at the end of a first
# connection, it raises two limits to these bytes, and reads are cheap from then on.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "266240", "MALLOC_TRIM_THRESHOLD_": "532480"}
ENVIRONMENT |= {"AUTH_BEARER_TOKEN": "", "PYTHONPATH": str(Path(__file__).parent)}


async def bare_loop(websocket):
    """Receive the messages."""
    async for _ in websocket:
        pass


async def plain_handler(websocket):
    """Receive the messages, and keep the payloads of each track in a list."""
    tracks = {"inbound": [], "outbound": []}
    async for message in websocket:
        data = json.loads(message)
        if data["event"] == "media":
            payload = base64.b64decode(data["media"]["payload"])
            tracks[data["media"]["track"]].append(payload)


async def serve(handler):
    """Run a server with one of these two handlers, which never hang up."""
    async with websockets.serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"Listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def run(handler=None):
    """Run a server with the handler of this name, or else the recorder; yield it."""
    code = f"import asyncio; from benchmark import *; asyncio.run(serve({handler}))"
    command = [sys.executable, "-c", code] if handler else [sys.executable, APP]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), command=command, environment=ENVIRONMENT)
        try:
            yield server
        finally:
            server.stop()


def cpu_time(server):
    """Return the CPU time that the process of a server has used, in s."""
    return sum(psutil.Process(server.process.pid).cpu_times()[:2])  # user and system


def make_call(chunk_count):
    """Return the audio of a call by track, and its messages: two frames for a chunk."""
    rng = random.Random(chunk_count)
    audio = {track: rng.randbytes(chunk_count * CHUNK_SIZE) for track in TRACKS}
    media = [text for _, text in call_messages("", audio) if '"event": "media"' in text]
    return audio, [Frame(Opcode.TEXT, x.encode()).serialize(mask=True) for x in media]


@contextlib.contextmanager
def calls_to(server, name, count):
    """Start calls, yield a client for each, and at the end drop those still connected."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(count)]
        for number, client in enumerate(clients):
            client.send(start(f"{name}-{number}", TRACKS))
            client.wait_received()
        yield clients


def hang_up(client):
    """End a call with `stop`; return how long it takes until it is saved, in s."""
    began = time.perf_counter()
    client.send(stop())
    client.wait_closed()
    return time.perf_counter() - began


def play(server, clients, messages, chunk_counts, saves):
    """Play calls in real time; return the CPU time of a message and the waits, in s."""
    calls, cpu_times, ends = len(clients), [], []
    with ThreadPoolExecutor(calls) as pool:
        began = time.perf_counter()
        for chunk in range(max(chunk_counts) + 1):
            if chunk in (WARM_UP, WARM_UP + MEASURED):
                cpu_times.append(cpu_time(server))
                if time.perf_counter() > began + chunk / SECOND + 0.04:
                    print("Too many calls: the machine is late", file=sys.stderr)
            for number, client in enumerate(clients):
                due = began + (chunk + number / calls) / SECOND
                time.sleep(max(due - time.perf_counter(), 0))
                if chunk < chunk_counts[number]:
                    client.socket.sendall(messages[2 * chunk])
                    client.socket.sendall(messages[2 * chunk + 1])
                elif chunk == chunk_counts[number] and saves:  # Others never hang up.
                    ends.append(pool.submit(hang_up, client))
    cost = (cpu_times[1] - cpu_times[0]) / (calls * 2 * MEASURED)
    return cost, [end.result() for end in ends]


def burst(server, clients, messages):
    """Send calls as fast as the server can; return the CPU time of a message, in s."""
    cpu_before = cpu_time(server)
    for place in range(0, len(messages), BATCH):
        batch = b"".join(messages[place : place + BATCH])
        for client in clients:
            client.socket.sendall(batch)
    # A pong says that the messages before it have been received. Those that are still in
    # a queue then are handled before the server reads a second ping.
    for client in clients * 2:
        client.wait_received()
    return (cpu_time(server) - cpu_before) / (len(clients) * len(messages))


def check(server, name, audio, chunk_counts):
    """End the program unless the files of these calls have every byte that was sent."""
    for number, chunk_count in enumerate(chunk_counts):
        for track in TRACKS:
            path = recording_path(server.directory, track, f"{name}-{number}")
            sent = audio[track][: chunk_count * CHUNK_SIZE]
            if not path.exists() or path.read_bytes()[HEADER:] != sent:
                sys.exit(f"Audio was lost: {path.name} is not what was sent")


def compare(calls, rounds):
    """Play the same calls to each server; yield the rows of the table about that."""
    audio, messages = make_call(BURST)
    # The calls end one after the other, in the second after what is measured.
    chunk_counts = [WARM_UP + MEASURED + SECOND * n // calls for n in range(calls)]
    paces, bursts, all_waits = [], [], []
    with run("bare_loop") as bare, run("plain_handler") as plain, run() as recorder:
        servers = {"bare loop": bare, "plain handler": plain, "recorder": recorder}
        for number in range(1, rounds + 1):
            paces.append([])
            bursts.append([])
            for label, server in servers.items():
                step = f"round {number} of {rounds}: {label}"
                print(f"{step}, at the pace of calls", file=sys.stderr)
                with calls_to(server, f"pace-{number}", calls) as clients:
                    saves = server is recorder
                    cost, waits = play(server, clients, messages, chunk_counts, saves)
                paces[-1].append(cost)
                all_waits += waits
                print(f"{step}, in a burst", file=sys.stderr)
                with calls_to(server, f"burst-{number}", BURST_CALLS) as clients:
                    bursts[-1].append(burst(server, clients, messages))
        recorder.stop()
        for number in range(1, rounds + 1):
            check(recorder, f"pace-{number}", audio, chunk_counts)
            check(recorder, f"burst-{number}", audio, [BURST] * BURST_CALLS)
    for label, costs in ("at the pace of calls", paces), ("in a burst", bursts):
        cells = [f"{median(times) * 1e6:.1f} µs" for times in zip(*costs, strict=True)]
        to_bare = median(recorder / bare for bare, _, recorder in costs)
        to_plain = median(recorder / plain for _, plain, recorder in costs)
        cells += [f"{to_bare:.2f}", f"{to_plain:.2f}"]
        yield f"| CPU time of a message {label} | {' | '.join(cells)} |"
    times = f"{median(all_waits) * 1e3:.0f} ms, {max(all_waits) * 1e3:.0f} ms"
    yield f"| from `stop` to the files, median and worst | | | {times} | | |"


def measure_hour():
    """Play a call of one hour to the recorder; yield the rows of the table about it."""
    print("a call of one hour", file=sys.stderr)
    (audio, messages), pings = make_call(HOUR), []
    with run() as recorder, Client(recorder) as caller, Client(recorder) as other:
        caller.send(start("hour-0", TRACKS))
        caller.wait_received()
        process = psutil.Process(recorder.process.pid)
        memory_before = process.memory_info().rss
        burst(recorder, [caller], messages)
        growth = process.memory_info().rss - memory_before
        end = ThreadPoolExecutor(1).submit(hang_up, caller)
        while not end.done():
            began = time.perf_counter()
            other.wait_received()
            pings.append(time.perf_counter() - began)
            time.sleep(0.002)
        check(recorder, "hour", audio, [HOUR])
    memory = f"{growth / (2 * HOUR * CHUNK_SIZE):.2f} bytes"
    yield f"| memory for a byte of audio in progress | | | {memory} | | |"
    wait, ping = f"{end.result() * 1e3:.0f} ms", f"{max(pings) * 1e3:.0f} ms"
    yield f"| from `stop` to the files of a one-hour call | | | {wait} | | |"
    yield f"| worst ping of another connection meanwhile | | | {ping} | | |"


def main():
    """Run the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--calls", default=100, type=int, help="how many at once")
    parser.add_argument("--rounds", default=5, type=int, help="how many to measure")
    args = parser.parse_args()
    if args.calls < 10 or args.rounds < 1:
        parser.error("--calls must be 10 or more, and --rounds 1 or more")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, 10240)  # as in app.py, where connections get half of it
    if limit < 2 * (args.calls + 50):
        sys.exit(
            f"{args.calls} calls are too many for the limit of {limit} descriptors"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    rows = [*compare(args.calls, args.rounds), *measure_hour()]
    machine = f"Cores: {os.cpu_count()}. Python: {sys.version.split()[0]}."
    print(f"Calls: {args.calls} of two tracks. Rounds: {args.rounds}. {machine}")
    print("Fewer calls give higher ratios at the pace of calls.\n")
    ratios = "recorder / bare loop | recorder / plain handler"
    print(f"| | bare loop | plain handler | recorder | {ratios} |")
    print("|" + " --- |" * 6, *rows, sep="\n")
    print("\nEvery file was compared with what was sent, byte for byte.")


if __name__ == "__main__":
    main()
