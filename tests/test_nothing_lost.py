"""However a stream ends, and whatever comes with it, its audio is saved."""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest
from conftest import (
    APP,
    PATIENCE,
    RawClient,
    check_recording,
    open_stream,
    privileged,
    stream,
    wait_closed,
)
from hypothesis import given
from hypothesis import strategies as st
from simulate_call import media, start, stop
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


def check_saved(server, call_sid, audio=AUDIO, folder=None):
    """Wait for the call's inbound track to be saved; assert that it is `audio`."""
    path = (folder or server.directory) / f"Inbound-{call_sid}.wav"
    server.wait_for("Saved", path.name)
    check_recording(path, audio)


# However a stream ends


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000])
def test_a_closing_handshake_without_stop(server, call_sid, code):
    with open_stream(server, call_sid) as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.close(code, "a line\nbreak")
    check_saved(server, call_sid)
    assert not any(line.startswith("break") for line in server.lines)


def test_a_reset(server, call_sid):
    client = RawClient(server)
    client.send(start(call_sid, ["inbound"]), *MEDIA)
    client.sync()
    client.reset()
    check_saved(server, call_sid)


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_the_end_of_the_line(server, call_sid, end):
    client = RawClient(server)
    client.send(start(call_sid, ["inbound"]), *MEDIA)
    if end == "shutdown":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.socket.close()
    check_saved(server, call_sid)


def test_a_line_that_goes_dead(start_server, tmp_path):
    script = f"""if True:
        import functools, runpy, websockets
        # As ever, but not with 20 s to wait.
        soon = {{"ping_interval": 0.1, "ping_timeout": 0.1}}
        websockets.serve = functools.partial(websockets.serve, **soon)
        runpy.run_path({str(APP)!r}, run_name="__main__")
    """
    server = start_server(command=[sys.executable, "-c", script])
    client = RawClient(server)
    client.send(start("call", ["inbound"]), *MEDIA)
    check_saved(server, "call")
    assert "keepalive" in server.wait_for("line dropped")


@pytest.mark.parametrize(
    ("bad", "code"), [(b"\xff", 1007), (b" " * 2**16 + b" ", 1009)]
)
def test_a_message_that_ends_the_stream(server, call_sid, bad, code):
    with open_stream(server, call_sid) as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.send(bad, text=True)
        assert wait_closed(websocket)[0] == code
    check_saved(server, call_sid)


def test_a_message_of_64_kib_is_taken(server, call_sid):
    audio = random.randbytes(49000)
    message = media("inbound", audio, 0)
    message += " " * (2**16 - len(message))
    with open_stream(server, call_sid) as websocket:
        websocket.send(message)
        websocket.send(stop())
        assert wait_closed(websocket) == (1000, "")
    check_saved(server, call_sid, audio)


def test_a_second_start_saves_what_the_first_recorded(server, call_sid):
    with open_stream(server, call_sid) as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.send(start(f"{call_sid}-b", ["inbound"]))
        check_saved(server, call_sid)
        websocket.send(MEDIA[0])
        websocket.send(stop())
        wait_closed(websocket)
    check_saved(server, f"{call_sid}-b", CHUNKS[0])


def test_a_second_start_that_is_refused(server, call_sid):
    with open_stream(server, call_sid) as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.send(start("../x", ["inbound"]))
        assert wait_closed(websocket)[0] == 1008
    check_saved(server, call_sid)
    assert len(list(server.directory.glob(f"*{call_sid}*"))) == 1


# The end of the server


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_calls_in_progress(start_server, signum):
    server = start_server()
    handshaking = socket.create_connection(server.address)
    deaf = [RawClient(server) for _ in range(40)]
    for number, client in enumerate(deaf):
        client.send(start(f"deaf-{number}", ["inbound"]), *MEDIA)
        client.sync()
    with open_stream(server, "polite") as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.ping().wait(PATIENCE)
        began = time.monotonic()
        server.process.send_signal(signum)
        assert wait_closed(websocket)[0] == 1001
        server.process.send_signal(signum)  # as people do who do not like to wait
        assert server.stop(signum) == 0
        # Not a measure of speed: the longest that the design allows for.
        assert time.monotonic() - began < 5
    handshaking.close()
    for call_sid in ["polite", *(f"deaf-{number}" for number in range(40))]:
        check_saved(server, call_sid)
    assert "Stopped, saved 41 recordings" in server.lines[-1]


def test_the_end_of_the_terminal_saves_the_calls_in_progress(start_server):
    server = start_server()
    with open_stream(server, "call") as websocket:
        for message in MEDIA:
            websocket.send(message)
        websocket.ping().wait(PATIENCE)
        assert server.stop(signal.SIGHUP) == 0
    check_saved(server, "call")


def test_nohup_is_respected(start_server):
    nohup = ["nohup", sys.executable, str(APP)]
    server = start_server(command=nohup)
    server.process.send_signal(signal.SIGHUP)
    stream(server, "call", {"inbound": AUDIO})
    check_saved(server, "call")


def test_a_peer_that_does_not_read_cannot_hold_up_the_end(start_server):
    server = start_server()
    client = RawClient(server)
    client.send(start("call", ["inbound"]), *MEDIA)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(50):  # 6 MB of pongs, which fit into no socket's buffer
        for _ in range(1000):
            client.protocol.send_ping(b" " * 125)
        client.flush()
    client.send("?")
    server.wait_for("skipped a message")  # so all have been read
    assert server.stop() == 0
    check_saved(server, "call")


def test_calls_that_end_in_random_ways(start_server, request):
    server = start_server()
    rng = random.Random(4)
    sent, running = {}, []
    for number in range(request.config.getoption("--random-calls")):
        call_sid = f"call-{number}"
        payloads = [rng.randbytes(160) for _ in range(rng.randrange(1, 30))]
        sent[call_sid] = b"".join(payloads)
        client = RawClient(server)
        client.send(start(call_sid, ["inbound"]))
        client.send(*(media("inbound", p, 20 * n) for n, p in enumerate(payloads)))
        match rng.choice(["stop", "close", "reset", "garbage", "end", "run on"]):
            case "stop":
                client.send(stop())
            case "close":
                client.close()
            case "reset":
                client.sync()
                client.reset()
            case "garbage":
                client.socket.sendall(rng.randbytes(100))
            case "end":
                client.socket.close()
        running.append(client)
        if len(running) > 60:
            running.pop(0).socket.close()
    assert server.stop() == 0
    for call_sid, audio in sent.items():
        check_saved(server, call_sid, audio)
    assert len(list(server.directory.iterdir())) == len(sent)


# Nothing is overwritten


def test_an_existing_file_is_left_alone(server, call_sid):
    existing = server.directory / f"Inbound-{call_sid}.wav"
    existing.write_bytes(b"mine")
    for name in [f"{call_sid}-2", f"{call_sid}-3"]:
        stream(server, call_sid, {"inbound": AUDIO})
        check_saved(server, name)
    assert existing.read_bytes() == b"mine"


@pytest.mark.parametrize("target", ["missing", "victim"])
def test_a_symbolic_link_is_not_followed(server, call_sid, target):
    target = server.directory / f"{call_sid}-{target}"
    if "victim" in target.name:
        target.write_bytes(b"mine")
    for name in f"Inbound-{call_sid}.wav", f"Inbound-{call_sid}-2.wav.part":
        (server.directory / name).symlink_to(target)
    stream(server, call_sid, {"inbound": AUDIO})
    check_saved(server, f"{call_sid}-3")
    assert not target.exists() or target.read_bytes() == b"mine"


def test_two_processes_on_one_folder(start_server, tmp_path):
    servers = [start_server(), start_server()]
    calls = {n: random.randbytes(1600) for n in range(40)}

    def play(number):
        stream(servers[number % 2], "call", {"inbound": calls[number]})

    threads = [threading.Thread(target=play, args=[number]) for number in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = list(tmp_path.iterdir())
    names = {"Inbound-call.wav", *(f"Inbound-call-{n}.wav" for n in range(2, 41))}
    assert {path.name for path in paths} == names
    assert {path.read_bytes()[58:] for path in paths} == set(calls.values())


def test_a_recording_appears_whole(server, call_sid):
    audio = random.randbytes(5_000_000)
    sizes = set()
    done = threading.Event()

    def watch():
        while not done.is_set():
            for path in server.directory.glob(f"*{call_sid}*.wav"):
                sizes.add(path.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stream(server, call_sid, {"inbound": audio})
    done.set()
    watcher.join()
    check_saved(server, call_sid, audio)
    assert sizes <= {58 + len(audio)}
    assert not list(server.directory.glob(f"*{call_sid}*.part"))


# A write that fails


def test_a_folder_that_is_gone(start_server, tmp_path):
    folder, temporary = tmp_path / "folder", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    server = start_server("--directory", str(folder), environment=environment)
    folder.rmdir()
    stream(server, "gone", {"inbound": AUDIO})
    server.wait_for("ERROR", "Inbound-gone.wav", "No such file or directory")
    server.wait_for("Saved", str(temporary))
    check_saved(server, "gone", folder=temporary)
    folder.mkdir()
    stream(server, "back", {"inbound": AUDIO})
    check_saved(server, "back", folder=folder)
    assert [path.name for path in temporary.iterdir()] == ["Inbound-gone.wav"]


def test_nowhere_to_write(start_server, tmp_path):
    limit = ["bash", "-c", 'ulimit -f 512 && exec "$@"', "bash"]  # KiB, a file
    environment = {"TMPDIR": str(tmp_path)}
    server = start_server(
        command=[*limit, sys.executable, APP], environment=environment
    )
    with open_stream(server, "small") as websocket:
        stream(server, "large", {"inbound": AUDIO * 100})
        lost = server.wait_for("ERROR", "lost")
        assert "large" in lost and "100.0 s" in lost
        assert [p for p in tmp_path.iterdir() if "large" in p.name] == []
        websocket.send(MEDIA[0])
        websocket.send(stop())
        wait_closed(websocket)
    check_saved(server, "small", CHUNKS[0])


@privileged
def test_a_disk_that_is_full(start_server, tmp_path):
    disk, temporary = tmp_path / "disk", tmp_path / "temporary"
    disk.mkdir()
    temporary.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk]
    subprocess.run(mount, check=True)
    try:
        environment = {"TMPDIR": str(temporary)}
        server = start_server("--directory", str(disk), environment=environment)
        with open_stream(server, "fits") as websocket:
            stream(server, "large", {"inbound": AUDIO * 10})
            server.wait_for("ERROR", "Inbound-large.wav", "No space left on device")
            check_saved(server, "large", AUDIO * 10, folder=temporary)
            assert list(disk.iterdir()) == []
            for message in [*MEDIA, stop()]:
                websocket.send(message)
            wait_closed(websocket)
        check_saved(server, "fits", folder=disk)
    finally:
        subprocess.run(["umount", disk], check=True)


# A bad message costs itself only

BAD = [
    "",
    "?",
    "[]",
    "null",
    "1" * 5000,
    "[" * 60000,
    '{"event":' * 7000,
    "{}",
    '{"event":1}',
    '{"event":["media"]}',
    '{"event":"media"}',
    '{"event":"media","media":[]}',
    b"\xff\xfe\xfd",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]
GOOD_MEDIA = {"track": "inbound", "payload": "QUJD", "timestamp": "0"}
BAD_MEDIA = [
    {"track": None},
    {"track": "sideways"},
    {"track": ["inbound"]},
    {"track": {}},
    {"payload": None},
    {"payload": 5},
    {"payload": ["QUJD"]},
    {"payload": "QUJ"},
    {"payload": "QU JD"},
    {"payload": "QUJD\n"},
    {"payload": "QU-_"},
    {"payload": "QUJD===="},
    {"payload": "QUJ="},
    {"payload": "Q\u00e9JD"},
]
BAD += [json.dumps({"event": "media", "media": GOOD_MEDIA | bad}) for bad in BAD_MEDIA]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ascii(bad)[:30])
def test_a_bad_message_costs_itself_only(server, call_sid, bad):
    with open_stream(server, call_sid) as websocket:
        for message in [bad, *MEDIA, bad, bad, stop()]:
            websocket.send(message)
        assert wait_closed(websocket) == (1000, "")
    check_saved(server, call_sid)
    lines = [line for line in server.lines if call_sid in line and "WARN" in line]
    assert len(lines) == 2
    assert all(len(line) < 300 for line in lines)
    assert "skipped a message: " in lines[0]
    assert "skipped 3 messages in all" in lines[1]


@pytest.mark.parametrize("name", ["callSid", "mediaFormat", "tracks"])
def test_a_start_as_nested_as_can_be(server, name):
    """Where it becomes too deep, it is so for JSON or for the log, but never fails."""
    lines = len(server.lines)
    message = json.loads(start("call", ["inbound"]))
    message["start"][name] = "nested"
    for depth in range(950, 1000, 4):
        nested = "[" * depth + "]" * depth
        with server.connect() as websocket:
            websocket.send(json.dumps(message).replace('"nested"', nested))
            with contextlib.suppress(ConnectionClosed):  # where the start is refused
                websocket.send(stop())
            assert wait_closed(websocket)[0] in (1000, 1003, 1008)
    assert not any("ERROR" in line for line in server.lines[lines:])


@pytest.mark.parametrize("last", [stop(), start("../x", ["inbound"])])
def test_what_follows_the_end_does_not_hold_up_the_close(server, call_sid, last):
    client = RawClient(server)
    client.send(start(call_sid, ["inbound"]), *MEDIA, last, MEDIA[0], MEDIA[1])
    client.wait_for(lambda event: event.opcode is Opcode.CLOSE)
    client.flush()  # the answer
    # A reset instead of an end would raise here.
    while client.socket.recv(65536):
        pass
    check_saved(server, call_sid)


def test_media_before_start(server, call_sid):
    with server.connect() as websocket:
        for message in [MEDIA[0], start(call_sid, ["inbound"]), *MEDIA, stop()]:
            websocket.send(message)
        wait_closed(websocket)
    check_saved(server, call_sid)
    server.wait_for("skipped a message: media before start")


text = st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner, max_size=5),
    max_leaves=5,
)
not_text = values.filter(lambda value: not isinstance(value, str))
events = text.filter(lambda event: event not in ("start", "stop"))
bad_media = st.fixed_dictionaries(
    {"track": st.sampled_from(["inbound", "outbound"]), "payload": not_text}
) | st.fixed_dictionaries({"track": values, "payload": st.just("QQ")})
objects = st.fixed_dictionaries(
    {"event": events | not_text}, optional={"media": values, "start": values}
) | st.fixed_dictionaries({"event": st.just("media"), "media": values | bad_media})
junk = (values | objects).map(json.dumps) | st.binary(max_size=100) | text


@given(messages=st.lists(junk, min_size=1, max_size=len(CHUNKS)))
def test_anything_between_good_messages(server, messages):
    call_sid = str(uuid.uuid4())
    client = RawClient(server)
    client.send(start(call_sid, ["inbound"]))
    for bad, good in zip(messages, MEDIA, strict=False):
        client.send(bad, good)
    client.send(stop())
    check_saved(server, call_sid, b"".join(CHUNKS[: len(messages)]))
    client.socket.close()
