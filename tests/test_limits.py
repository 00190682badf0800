"""When the machine runs out of something, the calls in progress are kept."""

import contextlib
import os
import random
import shutil
import signal
import socket
import time

import pytest
from checks import app_in, check_saved, needs
from stream import PATIENCE, TRACKS, Client, call, stop

resource = pytest.importorskip("resource")
AUDIO = {track: random.Random(track).randbytes(3200) for track in TRACKS}
NAMES = [f"call-{number}" for number in range(300)]
CAPABLE = "--inh-caps=+dac_override --ambient-caps=+dac_override"
SOMEBODY = f"setpriv --reuid=54321 --clear-groups {CAPABLE}"


@pytest.fixture(scope="module", autouse=True)
def many_descriptors():
    """Let this process have enough descriptors for the other end of 600 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1000:
        pytest.skip("needs a thousand descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def begin_calls(server, names):
    """Return for each name the client of a call of which all but its stop was sent."""
    clients = {name: Client(server) for name in names}
    for name, client in clients.items():
        *messages, _ = (message for _, message in call(name, AUDIO))
        client.send(*messages)
        client.sync()
    return clients


def end_calls(clients):
    for client in clients.values():
        client.send(stop())


def check_calls(server, names):
    """Wait until the calls are saved, and check each track."""
    for name in names:
        for track, audio in AUDIO.items():
            check_saved(server, name, audio, track)


def test_300_calls_where_256_descriptors_are_the_default(start_server):
    server = start_server(command=app_in("ulimit -Sn 256"))
    end_calls(begin_calls(server, NAMES))
    check_calls(server, NAMES)
    assert server.stop() == 0
    assert len(server.lines) <= 3 * 300 + 3


def connect(server, kind):
    """Return a connection, or None where the server has dropped it."""
    if kind == "a socket":
        return socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    with contextlib.suppress(ConnectionError):
        return Client(server)


@pytest.mark.parametrize("kind", ["a socket", "a WebSocket"])
def test_more_idle_connections_than_descriptors(start_server, kind):
    server = start_server(command=app_in("ulimit -n 256"))
    clients = begin_calls(server, NAMES[:5])
    idle = []
    with Client(server) as other:
        for _ in range(600):
            idle.append(connect(server, kind))
            other.sync()  # or else they are more than the kernel keeps for a server
    server.wait_for("WARNING Dropped connections", "256")
    ending = {name: clients.pop(name) for name in NAMES[:3]}
    end_calls(ending)
    check_calls(server, NAMES[:3])
    for client in filter(None, idle):
        (client if kind == "a socket" else client.socket).close()
    end_calls(clients)
    check_calls(server, NAMES[:5])
    until = time.monotonic() + PATIENCE
    while not (client := connect(server, "a WebSocket")) and time.monotonic() < until:
        pass
    client.send(*(message for _, message in call("new", AUDIO)))
    check_calls(server, ["new"])
    assert server.stop() == 0
    assert len("".join(server.lines)) < 10_000


@needs(["prlimit", "--version"], "needs prlimit, which is Linux's")
def test_the_end_of_the_server_with_no_descriptor_left(start_server):
    server = start_server()
    clients = begin_calls(server, NAMES[:5])
    used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used, used))
    server.process.send_signal(signal.SIGTERM)
    for client in clients.values():
        client.wait_closed()
        client.socket.close()
    assert server.stop() == 0
    check_calls(server, NAMES[:5])


@needs([*SOMEBODY.split(), "true"], "needs Linux, root and setpriv")
def test_calls_that_end_when_no_thread_can_be_started(start_server):
    limited = app_in(f'set -- {SOMEBODY} prlimit --nproc=9 "$@"')
    server = start_server(command=limited)
    end_calls(begin_calls(server, NAMES[:5]))
    check_calls(server, NAMES[:5])


@pytest.mark.parametrize("end", [end_calls, None])
def test_folders_that_can_be_written_only_later(start_server, tmp_path, end):
    folder, temporary = tmp_path / "folder", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    server = start_server("--directory", str(folder), TMPDIR=str(temporary))
    clients = begin_calls(server, NAMES[:10])  # more than are saved at once
    shutil.rmtree(folder)
    shutil.rmtree(temporary)
    if end:
        end(clients)
    else:
        server.process.send_signal(signal.SIGTERM)
    with server.news:  # until the server, if it ends, does not wait for them any more
        assert server.news.wait_for(
            lambda: sum("ERROR Could" in x for x in server.lines) >= 80, PATIENCE
        )
    folder.mkdir()
    for name in NAMES[:10]:
        for track, audio in AUDIO.items():
            check_saved(server, name, audio, track, folder)
