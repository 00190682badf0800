"""Who is let in, and what others are told."""

import contextlib
import random
import socket

import pytest
from checks import check_saved, play_call, python_app
from recorder import PATIENCE, Server

AUDIO = random.Random(5).randbytes(1600)
TOKEN = "correct-horse_battery.staple"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def ask(server, request):
    """Send a request and return all that comes back until the server closes."""
    response = b""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(request)
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                response += data
                if data.startswith(b"HTTP/1.1 101"):
                    client.shutdown(socket.SHUT_WR)
    return response


RIGHT = f"Bearer {TOKEN}"
WRONG = {"no header": [], "an empty header": [""], "two headers": [RIGHT, RIGHT]}
WRONG |= {"no token": ["Bearer"], "no scheme": [TOKEN], "no ASCII": ["Bearer \xe9\xff"]}
WRONG |= {"another scheme": [f"Basic {TOKEN}"], "two spaces": [f"Bearer  {TOKEN}"]}
WRONG |= {"a longer token": [RIGHT + "x"], "a shorter token": [RIGHT[:-1]]}
WRONG |= {"capitals": [f"Bearer {TOKEN.upper()}"]}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
def test_only_the_token_lets_in(start_server, given):
    server = start_server(environment={"AUTH_BEARER_TOKEN": TOKEN})
    headers = "".join(f"Authorization: {value}\r\n" for value in given)
    response = ask(server, UPGRADE + headers.encode("latin-1") + b"\r\n")
    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in response
    server.wait_for("WARNING Refused a connection: missing or wrong bearer token\n")
    play_call(server, "call", {"inbound": AUDIO}, token=TOKEN)
    check_saved(server, "call", AUDIO)
    assert server.lines_with(TOKEN) == server.lines_with("AUTH_BEARER_TOKEN") == []


@pytest.mark.parametrize("token", ["", "sesame"], ids=["no token", "a token"])
def test_a_browser_is_told_what_this_is(start_server, token):
    server = start_server(environment={"AUTH_BEARER_TOKEN": token})
    response = ask(server, b"GET /health?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"Recorder running" in response and b'<Stream url="wss://' in response
    if not token:
        server.wait_for("INFO No AUTH_BEARER_TOKEN: whoever finds the address can send")
    assert server.stop() == 0
    assert server.lines_with("WARNING") == server.lines_with("ERROR") == []


STRANGE = {
    "a GET with bytes behind it": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nhello",
    "a GET with a body": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "a POST": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "two upgrades": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n",
    "an upgrade with bytes behind it": UPGRADE + b"\r\n\xff\xff\xff",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    "a long line": b"GET /" + b"x" * 99_999 + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", STRANGE.values(), ids=STRANGE)
def test_strange_requests_leave_nothing_in_the_log(start_server, request_bytes):
    server = start_server()
    ask(server, request_bytes)
    play_call(server, "call", {"inbound": AUDIO})
    check_saved(server, "call", AUDIO)
    assert server.lines_with("WARNING") == server.lines_with("ERROR") == []


def test_an_error_inside_the_library_is_logged(tmp_path):
    change = "from websockets.server import ServerProtocol as P; P.send_response = None"
    server = Server(tmp_path, command=python_app(change))
    ask(server, UPGRADE + b"\r\n")
    server.wait_for("ERROR unexpected internal error")
    server.wait_for("TypeError: 'NoneType' object is not callable")
    assert server.stop() == 0


def test_compression_is_not_negotiated(server):
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    response = ask(server, UPGRADE + offer)
    assert response.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in response
