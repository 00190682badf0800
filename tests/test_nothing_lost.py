"""However a stream ends, and whatever comes with it, its audio is saved."""

import json
import random
import select
import signal
import socket
import struct
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from checks import app_after, app_in, app_with, check_saved, record, talk
from hypothesis import given
from hypothesis import strategies as st
from stream import HEADER, PATIENCE, Client, media, recording, start, stop
from websockets.frames import Opcode

CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


# However a stream ends


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1011, 3000])
def test_a_closing_handshake_without_stop(server, call_sid, code):
    with Client(server) as client:
        client.send(start(call_sid), *MEDIA)
        client.protocol.send_close(*[] if code == 1005 else [code, "a line\nbreak"])
        assert client.wait_closed()[0] == code
    check_saved(server, call_sid, AUDIO)
    lines = [line for line in server.lines if f"{call_sid}: the line dropped" in line]
    assert len(lines) == (code > 1005)
    assert all(f"{code} " in line and r"a line\nbreak" in line for line in lines)


def test_a_line_that_goes_dead(start_server):
    server = start_server(command=app_with("ping_interval=1, ping_timeout=1"))
    with Client(server) as client:
        client.send(start("call"), *MEDIA)
        check_saved(server, "call", AUDIO)
    assert "keepalive" in server.wait_for("line dropped")


def test_a_message_longer_than_64_kib_ends_the_stream(server, call_sid):
    audio = random.randbytes(49000)
    message = media("inbound", audio, 0).ljust(2**16)
    assert talk(server, start(call_sid), message, message + " ")[0] == 1009
    check_saved(server, call_sid, audio)


def test_what_comes_after_stop_does_not_hold_up_the_close(server, call_sid):
    with Client(server) as client:
        client.send(start(call_sid), *MEDIA, stop(), *MEDIA * 40)
        assert client.wait_closed() == (1000, "")
        # A reset instead of an end would raise here.
        while client.socket.recv(65536):
            pass
    check_saved(server, call_sid, AUDIO)


def is_napping(client, other):
    """Tell whether the server answers `other` twice before it reads from `client`."""
    client.protocol.send_ping(b"")
    client.flush()
    other.sync()
    other.sync()
    napping = not select.select([client.socket], [], [], 0)[0]
    client.wait_for(lambda event: event.opcode is Opcode.PONG)
    return napping


def test_a_call_is_read_in_gulps_if_in_progress_and_not_behind(server, call_sid):
    until = time.monotonic() + PATIENCE
    with Client(server) as client, Client(server) as other:
        assert not is_napping(client, other)
        client.send(start(call_sid), MEDIA[0])
        while not is_napping(client, other):  # on a busy machine, a nap may be over
            assert time.monotonic() < until
        while is_napping(client, other):
            client.send(*['{"event": "mark"}'.ljust(2**15)] * 2)
            client.sync()
            assert time.monotonic() < until
        client.send(stop())
        client.wait_closed()
    check_saved(server, call_sid, CHUNKS[0])


def test_calls_that_end_in_a_nap(start_server):
    server = start_server()
    names = ["stopped", "backlog", "closed", "shutdown", "reset", "terminated"]
    clients = {name: Client(server) for name in names}
    for name, client in clients.items():
        client.send(start(name))
        client.sync()
    for client in clients.values():
        client.send(*MEDIA[:5])
        client.sync()  # which is read with the audio, before a nap
    # They are being left alone now. What each sends at its end is in the kernel only.
    clients["stopped"].send(*MEDIA[5:10], stop())
    clients["backlog"].send(*MEDIA[5:], *MEDIA * 29, stop())
    for name in "closed", "shutdown":
        clients[name].send(*MEDIA[5:10])
    clients["shutdown"].socket.shutdown(socket.SHUT_WR)
    linger = struct.pack("ii", 1, 0)  # a RST instead of a FIN
    clients["reset"].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    for name in "closed", "reset":
        clients[name].socket.close()
    for name in "closed", "shutdown", "reset":
        server.wait_for(f"{name}: the line dropped: 'no closing handshake'")
    clients["terminated"].sync()
    clients["terminated"].send(*MEDIA[5:10])
    server.process.send_signal(signal.SIGTERM)
    assert clients["terminated"].wait_closed()[0] == 1001
    assert server.stop() == 0
    counts = {"reset": 5, "backlog": 30 * len(CHUNKS)}
    for name in names:
        check_saved(server, name, (AUDIO * 30)[: 160 * counts.get(name, 10)])


# The end of the server


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_calls_in_progress(start_server, signum):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup may have changed
    server = start_server()
    with Client(server) as idle, Client(server) as first, Client(server) as second:
        for name, client in {"first": first, "second": second}.items():
            client.send(start(name), *MEDIA[:25])
            client.sync()
        server.process.send_signal(signum)
        server.wait_for("Saving the calls in progress: 2")
        server.process.send_signal(signum)  # as people do who do not like to wait
        second.send(*MEDIA[25:])  # what is sent until the close is saved as well
        for client in idle, first, second:
            assert client.wait_closed()[0] == 1001
    assert server.stop(signum) == 0
    check_saved(server, "first", b"".join(CHUNKS[:25]))
    check_saved(server, "second", AUDIO)
    assert "Stopped" in server.lines[-1]


def test_peers_that_do_not_answer_or_read_cannot_hold_up_the_end(start_server):
    server = start_server(command=app_with("open_timeout=None"))
    handshaking = socket.create_connection(("127.0.0.1", server.port))
    clients = {f"call-{number}": Client(server) for number in range(40)}
    for name, client in clients.items():
        client.send(start(name), *MEDIA)
        client.sync()
    for _ in range(50):  # 6 MB of pongs, which fit into no socket's buffer
        for _ in range(1000):
            client.protocol.send_ping(b" " * 125)
        client.flush()
    client.send("?")
    server.wait_for("call-39: skipped a message")  # so all have been read
    assert server.stop() == 0
    handshaking.close()
    for name, client in clients.items():
        check_saved(server, name, AUDIO)
        client.socket.close()


def test_nohup_is_respected(start_server):
    server = start_server(command=app_in('set -- nohup "$@"'))
    server.process.send_signal(signal.SIGHUP)
    record(server, "call", {"inbound": AUDIO})
    check_saved(server, "call", AUDIO)


def test_a_background_job_ends_on_sigint(start_server):
    assert start_server(command=app_in('trap "" INT')).stop(signal.SIGINT) == 0


# Nothing is overwritten


@pytest.mark.parametrize("existing", ["file", "link to a file", "link to nothing"])
def test_what_exists_is_left_alone(server, call_sid, existing):
    path, target = (recording(server.directory, n, call_sid) for n in ("inbound", "x"))
    if existing != "link to nothing":
        target.write_bytes(b"mine")
    path.hardlink_to(target) if existing == "file" else path.symlink_to(target)
    path.with_name(f"Inbound-{call_sid}-2.wav.part").symlink_to(target)
    for name in [f"{call_sid}-3", f"{call_sid}-4"]:
        record(server, call_sid, {"inbound": AUDIO})
        check_saved(server, name, AUDIO)
    found = path.read_bytes() if path.exists() else None
    assert found == (None if existing == "link to nothing" else b"mine")


def test_two_processes_on_one_folder(start_server, tmp_path):
    servers = [start_server(), start_server()]
    audios = [random.randbytes(1600) for _ in range(40)]
    with ThreadPoolExecutor(len(audios)) as pool:
        for server, audio in zip(servers * 20, audios, strict=True):
            pool.submit(record, server, "call", {"inbound": audio})
    paths = list(tmp_path.iterdir())
    names = {"Inbound-call.wav", *(f"Inbound-call-{n}.wav" for n in range(2, 41))}
    assert {path.name for path in paths} == names
    assert sorted(path.read_bytes()[HEADER:] for path in paths) == sorted(audios)


def test_a_recording_gets_its_name_when_it_is_on_the_disk(start_server):
    lines = [
        "import os, sys",
        "fsync, rename = os.fsync, os.rename",
        "def tell(*words): print(*words, file=sys.stderr)",
        "os.fsync = lambda fd: tell('fsync', os.fstat(fd).st_size, fsync(fd))",
        "os.rename = lambda old, new: tell('rename', old, new, rename(old, new))",
    ]
    server = start_server(command=app_after(*lines))
    record(server, "call", {"inbound": AUDIO})
    check_saved(server, "call", AUDIO)
    synced = server.lines.index(f"fsync {HEADER + len(AUDIO)} None\n")
    renamed = "rename Inbound-call.wav.part Inbound-call.wav None\n"
    assert server.lines[synced + 1] == renamed


# A bad message costs itself only

BAD = ["", "?", "[]", "null", "1" * 5000, "[" * 60000, '{"event":' * 7000, b"\xff\xfe"]
BAD += ["{}", '{"event":1}', '{"event":["media"]}', '{"event":"media"}']
BAD += ['{"event":"media","media":[]}', '{"event":"media","media":"payload"}']
BAD_MEDIA = [("inbound", x) for x in (None, 5, ["QUJD"], "QUJ", "QU JD", "QUJD\n")]
BAD_MEDIA += [("inbound", x) for x in ("QU-_", "QUJD=QUJD", "Q\u00e9JD")]
BAD_MEDIA += [(x, "QUJD") for x in (None, 5, "sideways", ["inbound"], {})]
for track, payload in BAD_MEDIA:
    bad = {"track": track, "payload": payload, "timestamp": "0"}
    BAD.append(json.dumps({"event": "media", "media": bad}))
BAD += [f'{{"event":"start","start":{{"callSid":"{sid}"}}}}' for sid in ("x", "../x")]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ascii(bad)[:80])
def test_a_bad_message_costs_itself_only(server, call_sid, bad):
    messages = [start(call_sid), bad, *MEDIA, bad, bad, stop()]
    assert talk(server, *messages) == (1000, "")
    check_saved(server, call_sid, AUDIO)
    first, total = (x for x in server.lines if call_sid in x and "WARNING" in x)
    assert "skipped a message: " in first and len(first) < 300
    assert "skipped 3 messages in all" in total


def test_bad_messages_before_start(server, call_sid):
    bad = MEDIA[0], '{"event":"start","start":5}'
    talk(server, *bad, start(call_sid), *MEDIA, stop())
    check_saved(server, call_sid, AUDIO)
    server.wait_for("WARNING No call yet: skipped a message")


text = st.text(max_size=20).filter(lambda event: event != "stop")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner, max_size=5),
    max_leaves=5,
)
not_text = values.filter(lambda value: not isinstance(value, str))
bad_media = values | st.fixed_dictionaries({"track": values, "payload": not_text})
events = st.sampled_from(["start", "media", "dtmf"]) | values
fields = {"media": bad_media, "start": values}
objects = st.fixed_dictionaries({"event": events}, optional=fields)
junk = (values | objects).map(json.dumps) | st.binary(max_size=100) | text


@given(messages=st.lists(junk, min_size=1, max_size=len(CHUNKS)))
def test_anything_between_good_messages(server, messages):
    call_sid, count = str(uuid.uuid4()), len(messages)
    mixed = [each for pair in zip(messages, MEDIA, strict=False) for each in pair]
    assert talk(server, start(call_sid), *mixed, stop()) == (1000, "")
    check_saved(server, call_sid, b"".join(CHUNKS[:count]))
