"""Who is let in, and what strangers can do."""

import contextlib
import os
import random
import socket
import subprocess
import sys

import pytest
from conftest import (
    APP,
    PATIENCE,
    RawClient,
    check_recording,
    open_stream,
    stream,
    wait_closed,
)
from simulate_call import media, start
from websockets.exceptions import InvalidStatus

AUDIO = random.Random(5).randbytes(1600)
TOKEN = "correct-horse_battery.staple"
UPGRADE = (
    "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.fixture(scope="module", autouse=True)
def unfinished(server):
    """A handshake that does not come, begun in time not to wait for it to the end."""
    with socket.create_connection(server.address, PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        yield client


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        ["call"],
        {},
        "",
        "../call",
        "/tmp/call",
        "a/b",
        "a\\b",
        "call.wav",
        "C:call",
        "a b",
        "call\n",
        "\x00",
        "\x1b[2J",
        "\u00e9",
        "\u0663",
        "\ud800",
        "a" * 65,
        "a" * 60000,
    ],
    ids=lambda bad: ascii(bad)[:20],
)
def test_a_call_sid_that_is_none_is_refused(server, bad):
    before = set(server.directory.iterdir())
    lines = len(server.lines)
    with open_stream(server, bad) as websocket:
        assert wait_closed(websocket) == (
            1008,
            "callSid must be 1 to 64 letters, digits, - or _",
        )
    server.wait_for("Refused a stream: callSid", repr(bad)[:100])
    assert len(server.lines) == lines + 1
    assert len(server.lines[-1]) < 400
    assert set(server.directory.iterdir()) == before


@pytest.mark.parametrize(
    "message", ['{"event":"start"}', '{"event":"start","start":[]}', start("x", [])]
)
def test_a_start_without_call_sid_is_refused(server, message):
    with server.connect() as websocket:
        websocket.send(message.replace('"callSid"', '"callId"'))
        assert wait_closed(websocket)[0] == 1008


def test_every_letter_and_64_of_them(server):
    call_sid = "azAZ09_-" * 8
    stream(server, call_sid, {"inbound": AUDIO})
    check_recording(server.directory / f"Inbound-{call_sid}.wav", AUDIO)


@pytest.fixture
def guarded(start_server):
    return start_server(environment={"AUTH_BEARER_TOKEN": TOKEN})


def authorization(value):
    return {"additional_headers": {"Authorization": value}}


def test_the_token_lets_in(guarded):
    with guarded.connect(**authorization(f"Bearer {TOKEN}")) as websocket:
        websocket.send(start("call", ["inbound"]))
        websocket.send(media("inbound", AUDIO, 0))
        websocket.send('{"event":"stop"}')
        assert wait_closed(websocket) == (1000, "")
    check_recording(guarded.directory / "Inbound-call.wav", AUDIO)
    assert "a token is needed" in guarded.lines[0]
    assert TOKEN not in "".join(guarded.lines)


def test_nothing_else_lets_in(guarded):
    for value in [
        "",
        "Bearer",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"bearer {TOKEN}",
        f"Bearer  {TOKEN}",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN.upper()}",
    ]:
        with pytest.raises(InvalidStatus) as refusal:
            guarded.connect(**authorization(value)).__enter__()
        assert refusal.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as refusal:
        guarded.connect().__enter__()
    assert refusal.value.response.status_code == 401
    assert refusal.value.response.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in "".join(guarded.lines)


@pytest.mark.parametrize("bad", ["a b", "token\n", "t\u00f6ken", "\udcff"])
def test_a_token_that_no_header_can_hold(tmp_path, bad):
    environment = {**os.environ, "AUTH_BEARER_TOKEN": bad}
    command = [sys.executable, APP]
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("AUTH_BEARER_TOKEN") and done.stderr.count("\n") == 1


def ask(server, request):
    """Send a request and return all that comes back until the server closes."""
    with (
        socket.create_connection(server.address, PATIENCE) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(request)
        if b"HTTP" not in request:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
            if data.startswith(b"HTTP/1.1 101"):
                client.shutdown(socket.SHUT_WR)
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n".encode(),
        f"Authorization: Bearer {TOKEN}\r\nAuthorization: x\r\n".encode(),
        b"Authorization: Bearer \xe9\xff\r\n",
    ],
)
def test_a_doubled_header_or_one_that_is_not_ascii(guarded, headers):
    answer = ask(guarded, UPGRADE.encode() + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    guarded.wait_for("Refused a connection")
    assert len(guarded.lines) == 2


def test_without_a_token_it_says_so(server):
    assert "anybody" in server.lines[0]
    assert "AUTH_BEARER_TOKEN" in server.lines[0]


PROBES = {
    "port scan": (b"", b""),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500, b""),
    "browser": (b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", b"HTTP/1.1 426"),
    "20 KB of the letter A": (b"A" * 20000, b"HTTP/1.1 414"),
    "post": (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b""),
    "other version": (UPGRADE.replace("13", "8").encode() + b"\r\n", b"HTTP/1.1 400"),
    "headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"HTTP/1.1 431"),
    "garbage": (random.Random(6).randbytes(5000) + b"\n", b""),
}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_gets_an_answer_or_a_closed_door(server, call_sid, probe):
    request, answer = PROBES[probe]
    lines = len(server.lines)
    assert ask(server, request).startswith(answer)
    stream(server, call_sid, {"inbound": AUDIO})
    server.wait_for("Saved", call_sid)
    added = [line for line in server.lines[lines:] if call_sid not in line]
    assert added == []


def test_garbage_after_the_handshake(server, call_sid):
    lines = len(server.lines)
    client = RawClient(server)
    client.socket.sendall(random.Random(7).randbytes(1000))
    client.socket.close()
    with server.connect() as websocket:
        for _ in range(1000):
            websocket.send("A" * 100)
    server.wait_for("skipped 1000 messages in all")
    assert len(server.lines) <= lines + 3


def test_compression_is_not_negotiated(server):
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    answer = ask(server, UPGRADE.encode() + offer)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in answer


def test_hundreds_of_idle_sockets(server, call_sid):
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(server.address))
            stack.enter_context(RawClient(server).socket)
        stream(server, call_sid, {"inbound": AUDIO})
        check_recording(server.directory / f"Inbound-{call_sid}.wav", AUDIO)


def test_a_handshake_that_does_not_come_is_given_up(unfinished):
    with contextlib.suppress(ConnectionResetError):
        assert unfinished.recv(1) == b""
