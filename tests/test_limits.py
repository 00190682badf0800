"""When the machine runs out of something, the calls in progress are kept."""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess

import psutil
import pytest
from checks import app_in, check_saved, needs, needs_namespaces, record
from stream import TRACKS, Client, call, media, start, stop

resource = pytest.importorskip("resource")
AUDIO = {track: random.Random(track).randbytes(3200) for track in TRACKS}
NAMES = [f"call-{number}" for number in range(300)]
CAPABLE = "--inh-caps=+dac_override --ambient-caps=+dac_override"
SOMEBODY = f"setpriv --reuid=54321 --clear-groups {CAPABLE}"


@pytest.fixture(scope="module", autouse=True)
def many_descriptors():
    """Let this process have enough descriptors for the other end of 600 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
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


def check_calls(server, names, folder=None):
    """Wait until the calls are saved, and check each track."""
    for name in names:
        for track, audio in AUDIO.items():
            check_saved(server, name, audio, track, folder)


def test_300_calls_where_256_descriptors_are_the_default(start_server):
    server = start_server(command=app_in("ulimit -Sn 256"))
    end_calls(begin_calls(server, NAMES))
    check_calls(server, NAMES)
    assert len(server.lines) <= 3 * 300 + 2


def connect(server):
    """Return a WebSocket, or None where the server has dropped the connection."""
    with contextlib.suppress(ConnectionError):
        return Client(server)


def test_more_idle_connections_than_descriptors(start_server):
    server = start_server(command=app_in("ulimit -n 64"))
    clients = begin_calls(server, NAMES[:5])
    with contextlib.ExitStack() as idle:
        other = idle.enter_context(Client(server))
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(300):  # of which the kernel may keep only a few
            connecting = idle.enter_context(socket.socket())
            connecting.setblocking(False)
            connecting.connect_ex(("127.0.0.1", server.port))
        server.process.send_signal(signal.SIGCONT)
        for _ in range(300):
            other.sync()  # or else these are more than the kernel keeps
            idle.enter_context(connect(server) or contextlib.nullcontext())
        server.wait_for("WARNING Dropped connections", "64")
        assert psutil.Process(server.process.pid).num_fds() <= 32
        end_calls({name: clients.pop(name) for name in NAMES[:3]})
        check_calls(server, NAMES[:3])
    end_calls(clients)
    check_calls(server, NAMES[:5])
    tries = (connect(server) for _ in range(10_000))
    client = next(filter(None, tries))
    client.send(*(message for _, message in call("new", AUDIO)))
    check_calls(server, ["new"])
    assert len("".join(server.lines)) < 10_000


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_the_end_of_the_server_with_no_descriptor_left(start_server):
    server = start_server()
    clients = begin_calls(server, NAMES[:5])
    used = max(map(int, os.listdir(f"/proc/{server.process.pid}/fd"))) + 1
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used, used))
    server.process.send_signal(signal.SIGTERM)
    for client in clients.values():
        client.wait_closed()
    check_calls(server, NAMES[:5])


@needs(f"{SOMEBODY} prlimit true", "needs Linux, root and util-linux")
def test_calls_that_end_when_no_thread_can_be_started(start_server):
    server = start_server(command=app_in(f'set -- {SOMEBODY} prlimit --nproc=20 "$@"'))
    cats = [*SOMEBODY.split(), "sh", "-c", " | ".join(["cat"] * 20)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(cats, **pipes) as others:
        others.stdin.write(b"\n")
        others.stdout.readline()  # so they all run
        end_calls(begin_calls(server, NAMES[:5]))
        check_calls(server, NAMES[:5])


@pytest.mark.parametrize("stopped", [True, False])
def test_folders_that_can_be_written_only_later(start_server, tmp_path, stopped):
    folder, temporary = tmp_path / "folder", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    server = start_server("--directory", str(folder), TMPDIR=str(temporary))
    clients = begin_calls(server, NAMES[:10])  # more than are saved at once
    shutil.rmtree(folder)
    shutil.rmtree(temporary)
    if stopped:
        end_calls(clients)
    else:
        server.process.send_signal(signal.SIGTERM)
    # By then, nothing goes on but the threads of a server that is to end.
    server.wait_for("ERROR Could", count=20 if stopped else 80)
    server.process.send_signal(signal.SIGTERM)  # for the first or the second time
    folder.mkdir()
    check_calls(server, NAMES[:10], folder)


def test_nowhere_to_write(start_server, tmp_path):
    limited = app_in("ulimit -f 512")  # KiB, a file
    server = start_server(command=limited, TMPDIR=str(tmp_path))
    with Client(server) as client:
        client.send(start("large"), *[media("inbound", bytes(40_000), 0)] * 20, stop())
        for count in 2, 4:  # there is a try each second
            server.wait_for("ERROR Could", count=count)
            client.send(*["{}"] * 2500)
        server.wait_for("ERROR Could", count=6)
        client.protocol.send_ping(b"")
        client.flush()
        server.wait_for("ERROR Could", count=16)
        assert not select.select([client.socket], [], [], 0)[0]  # it reads no more
        server.wait_for("ERROR Could", count=20)
        server.wait_for("ERROR Call has lost 100.0 s: Inbound-large.wav")
    record(server, "small", AUDIO)
    check_calls(server, ["small"])
    assert len(list(tmp_path.iterdir())) == 2


@needs_namespaces
def test_a_disk_that_is_full(start_server, tmp_path):
    disk, temporary = tmp_path / "disk", tmp_path / "temporary"
    disk.mkdir()
    temporary.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk]
    subprocess.run(mount, check=True)
    try:
        server = start_server("--directory", str(disk), TMPDIR=str(temporary))
        audio = random.randbytes(80_000)
        record(server, "large", {"inbound": audio})
        server.wait_for("ERROR", "Inbound-large.wav", "No space left on device")
        check_saved(server, "large", audio, folder=temporary)
        assert list(disk.iterdir()) == []
        record(server, "small", AUDIO)
        check_calls(server, ["small"], disk)
    finally:
        subprocess.run(["umount", disk], check=True)
