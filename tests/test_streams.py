"""However a stream ends, and whatever its peer does, its audio is saved."""

import contextlib
import select
import socket
import time

import psutil
import pytest
from checks import app_with, begin_call, check_saved, play_call, python_app
from recorder import PATIENCE, Client
from signalwire import AUDIO, CHUNKS, MEDIA, start, stop
from websockets.frames import Frame, Opcode


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1011, 3000])
def test_a_close_without_stop_saves_the_call(server, call_sid, code):
    with Client(server) as client:
        client.send(start(call_sid), *MEDIA)
        client.protocol.send_close(*[] if code == 1005 else [code, "a line\nbreak"])
        assert client.wait_closed()[0] == code
    check_saved(server, call_sid, AUDIO)
    lines = server.lines_with(f"WARNING {call_sid}: the line dropped: ")
    assert len(lines) == (1 if code in (1011, 3000) else 0)
    for line in lines:
        assert f"'received {code} " in line and r"a line\nbreak; then sent" in line


def test_a_peer_that_does_not_answer_pings_is_saved_in_time(start_server):
    """It pings 40 times faster: after 0.5 s, 3.25 s to answer. Closing takes 2 s."""
    interval = "ping_interval=given.get('ping_interval', 20) / 40"
    timeout = "ping_timeout=given['ping_timeout'] / 40"
    server = start_server(command=app_with(f"{interval}, {timeout}"))
    began = time.monotonic()
    with Client(server) as client:
        client.send(start("call"), *MEDIA)
        check_saved(server, "call", AUDIO)
    assert 5.5 < time.monotonic() - began < 9
    server.wait_for("call: the line dropped: 'sent 1011", "keepalive ping timeout")


def is_paused(client, other):
    """Tell whether the server answers `other` twice before it reads from `client`."""
    client.protocol.send_ping(b"")
    client.flush()
    other.wait_received()
    other.wait_received()
    paused = not select.select([client.socket], [], [], 0)[0]
    client.wait_for(lambda event: event.opcode is Opcode.PONG)
    return paused


def test_reading_pauses_in_a_call_but_not_when_more_is_waiting(server, call_sid):
    until = time.monotonic() + PATIENCE
    with Client(server) as client, Client(server) as other:
        assert not is_paused(client, other)
        client.send(start(call_sid), MEDIA[0])
        while not is_paused(client, other):  # On a busy machine, a pause may be over.
            assert time.monotonic() < until
        while is_paused(client, other):
            client.send(*['{"event": "mark"}'.ljust(2**15)] * 2)
            client.wait_received()
            assert time.monotonic() < until
    check_saved(server, call_sid, CHUNKS[0])


def begin_paused_call(server, call_sid):
    """Return the client of a call with five chunks that is not being read right now."""
    client = begin_call(server, start(call_sid))
    client.send(*MEDIA[:5])
    client.wait_received()
    return client


def test_a_backlog_that_comes_in_a_pause_is_recorded(server, call_sid):
    with begin_paused_call(server, call_sid) as client:
        client.send(*MEDIA[5:], *MEDIA * 29, stop())
        client.wait_closed()
    check_saved(server, call_sid, AUDIO * 30)


DROPS = {  # and what the log says of it
    "close": (lambda sock: sock.close(), "no close frame "),
    "half-close": (lambda sock: sock.shutdown(socket.SHUT_WR), "no close frame "),
    "garbage": (lambda sock: sock.sendall(b"\xff" * 1000), "sent 1002 "),
}


@pytest.mark.parametrize(("drop", "words"), DROPS.values(), ids=DROPS)
def test_a_line_that_drops_in_a_pause_loses_nothing(server, call_sid, drop, words):
    with begin_paused_call(server, call_sid) as client:
        client.send(*MEDIA[5:])
        drop(client.socket)
        with contextlib.suppress(OSError):
            client.wait_closed()
    check_saved(server, call_sid, AUDIO)
    server.wait_for(f"WARNING {call_sid}: the line dropped: '{words}")


@pytest.mark.parametrize("small", [0, 300], ids=["large messages", "small ones first"])
def test_a_sender_is_slowed_down_when_the_recorder_cannot_keep_up(start_server, small):
    """While a call is being saved, it is not read beyond the queue."""
    lines = ["import os, time", "os.fsync = lambda fd: time.sleep(3)"]
    server = start_server(command=python_app(*lines))
    with begin_call(server, start("call")) as client:
        client.send(*MEDIA, stop(), *["{}"] * small)
        time.sleep(0.5)  # so that it has been read
        client.socket.setblocking(False)
        frame, sent = Frame(Opcode.TEXT, bytes(2**20)).serialize(mask=True), 0
        while select.select([], [client.socket], [], 1)[1]:
            sent += client.socket.send(frame[sent % len(frame) :])
        memory = psutil.Process(server.process.pid).memory_info().rss
        assert sent < 400 * 2**20 and memory < 600 * 2**20
        check_saved(server, "call", AUDIO)


def send_pings(client, payload, total):
    """Send pings until `total` bytes are sent, or the connection is dropped."""
    frames = Frame(Opcode.PING, payload).serialize(mask=True) * 1000
    with contextlib.suppress(ConnectionError):
        for _ in range(total // len(frames)):
            client.socket.sendall(frames)


@pytest.mark.parametrize("payload", [b"", b" " * 125], ids=["empty", "long"])
def test_a_peer_that_sends_pings_and_never_reads_is_dropped(start_server, payload):
    lines = [  # The kernel buffers megabytes of what is sent: that takes long to fill.
        "import socket",
        "bind = socket.socket.bind",
        "def bind_small(sock, address):",
        "    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)",
        "    bind(sock, address)",
        "socket.socket.bind = bind_small",
    ]
    server = start_server(command=python_app(*lines))
    other = begin_call(server, start("other"), *MEDIA[:25])
    with other, begin_call(server, start("peer"), *MEDIA) as peer:
        began = time.monotonic()
        send_pings(peer, payload, 50_000_000)
        server.wait_for("WARNING Dropped a connection that sends pings, but reads no ")
        other.send(*MEDIA[25:], stop())
        other.wait_closed()
        assert time.monotonic() - began < 10  # half a minute and more, if they pile up
    check_saved(server, "peer", AUDIO)
    check_saved(server, "other", AUDIO)


def test_pings_of_peers_that_are_gone_do_not_fill_the_log(start_server):
    server = start_server()
    for number in range(10):
        with begin_call(server, start(f"call-{number}"), MEDIA[0]) as peer:
            send_pings(peer, b"", 240_000)  # The pongs are answered with a RST.
        check_saved(server, f"call-{number}", CHUNKS[0])
    play_call(server, "last", {"inbound": AUDIO})
    check_saved(server, "last", AUDIO)
    assert len(server.lines) < 100
