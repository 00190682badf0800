"""Who is let in, what a browser is told, and what strangers can do."""

import contextlib
import random
import socket

import pytest
from checks import check_saved, record, talk
from stream import CONNECTED, PATIENCE, Client, media, start, stop

AUDIO = random.Random(5).randbytes(1600)
TOKEN = b"correct-horse_battery.staple"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def ask(server, request):
    """Send a request and return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                answer += data
                if data.startswith(b"HTTP/1.1 101"):
                    client.shutdown(socket.SHUT_WR)
    return answer


BAD_SIDS = [5, ["call"], {"call": 1}, "../call", "/tmp/call", "a\\b", "a.wav", "C:call"]
BAD_SIDS += ["a b", "call\n", "\x00", "\x1b[2J", "\u00e9", "\u0663", "\ud800", "a" * 65]


@pytest.mark.parametrize("bad", BAD_SIDS, ids=ascii)
@pytest.mark.parametrize("field", ["callSid", "streamSid"])
def test_a_sid_that_is_no_name_is_refused(server, field, bad):
    before = set(server.directory.iterdir())
    reason = "callSid must be 1 to 64 letters, digits, - or _"
    messages = CONNECTED, start(None, **{field: bad}), media("inbound", AUDIO, 0)
    assert talk(server, *messages) == (1008, reason)
    line = server.wait_for(f"WARNING Refused a stream: {reason}; it is {bad!r}"[:150])
    assert len(line) < 300
    assert set(server.directory.iterdir()) == before


@pytest.mark.parametrize("event", ['"start"}', '"start","start":[]}'])
def test_a_start_without_any_sid_is_refused(server, event):
    assert talk(server, '{"event":' + event)[0] == 1008


@pytest.fixture
def guarded(start_server):
    return start_server(AUTH_BEARER_TOKEN=TOKEN.decode())


def test_the_token_lets_in(guarded):
    call_sid = "azAZ09_-" * 8  # every kind of letter, and as many as can be
    record(guarded, call_sid, {"inbound": AUDIO}, token=TOKEN.decode())
    check_saved(guarded, call_sid, AUDIO)
    assert TOKEN.decode() not in "".join(guarded.lines)


NOT_THE_TOKEN = [b"", b"Bearer", TOKEN, b"Bearer %bx" % TOKEN, b"Bearer " + TOKEN[:-1]]
NOT_THE_TOKEN += [b"bearer " + TOKEN, b"Bearer  " + TOKEN, b"Basic " + TOKEN]
NOT_THE_TOKEN += [b"Bearer " + TOKEN.upper(), b"Bearer \xe9\xff"]
NOT_THE_TOKEN += [b"Bearer %b\r\nAuthorization: %b" % (TOKEN, b"Bearer " + TOKEN)]


@pytest.mark.parametrize("value", [None, *NOT_THE_TOKEN])
def test_nothing_else_lets_in(guarded, value):
    header = b"" if value is None else b"Authorization: %b\r\n" % value
    answer = ask(guarded, UPGRADE + header + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in answer
    guarded.wait_for("WARNING Refused a connection")
    assert TOKEN.decode() not in "".join(guarded.lines)


@pytest.mark.parametrize("token", ["", "sesame"])
def test_a_browser_is_told_what_this_is(start_server, token):
    server = start_server(AUTH_BEARER_TOKEN=token)
    answer = ask(server, b"GET /health?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"running" in answer and b'<Stream url="wss://' in answer
    assert server.stop() == 0
    assert len(server.lines) == 3 - bool(token)
    assert ("AUTH_BEARER_TOKEN: anybody" in server.lines[1]) == (not token)


@pytest.mark.parametrize("header", [b"Upgrade: a\r\nUpgrade: b", b"Content-Length: 5"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_probe_is_not_logged(start_server, method, header):
    server = start_server()
    ask(server, method + b" / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\nhello")
    record(server, "call", {"inbound": AUDIO})
    check_saved(server, "call", AUDIO)
    assert [line for line in server.lines[2:] if "call" not in line] == []


def test_garbage_after_the_handshake(start_server):
    server = start_server()
    with Client(server) as garbage, Client(server) as nonsense:
        garbage.socket.sendall(random.Random(7).randbytes(1000))
        nonsense.send(*["A" * 100] * 1000, stop())
        server.wait_for("skipped 1000 messages in all")
        assert garbage.wait_closed()[0] == 1002
    assert len(server.lines) == 4


def test_compression_is_not_negotiated(server):
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    answer = ask(server, UPGRADE + offer)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in answer
