"""When the machine runs out of something, the calls in progress are kept."""

import contextlib
import os
import random
import signal
import socket
import subprocess

import psutil
import pytest
from checks import begin_call, check_saved, needs, shell_app
from recorder import Client
from signalwire import TRACKS, call_messages, stop

resource = pytest.importorskip("resource")
AUDIO = {track: random.Random(track).randbytes(3200) for track in TRACKS}
CAPS = "--inh-caps=+dac_override --ambient-caps=+dac_override"
SOMEBODY = f"setpriv --reuid=54321 --clear-groups {CAPS}"

_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(HARD, 2048), HARD))  # for both ends


def begin_calls(server, count):
    """Return the clients of the calls 0, 1 and so on, whose `stop` is still to come."""
    clients = []
    for number in range(count):
        *messages, _ = (text for _, text in call_messages(str(number), AUDIO))
        clients.append(begin_call(server, *messages))
    return clients


def check_calls(server, count):
    """Wait until so many calls are saved, and check both tracks."""
    for number in range(count):
        for track, audio in AUDIO.items():
            check_saved(server, str(number), audio, track)


def end_calls(server, clients):
    """Send `stop` on each call, and wait until all are saved."""
    for client in clients:
        client.send(stop())
    check_calls(server, len(clients))


def test_300_calls_where_256_descriptors_are_the_default(start_server):
    server = start_server(command=shell_app("ulimit -Sn 256"))
    end_calls(server, begin_calls(server, 300))
    assert server.lines_with("WARNING") == server.lines_with("ERROR") == []


def test_idle_connections_leave_descriptors_for_the_calls(start_server):
    server = start_server(command=shell_app("ulimit -n 64"))
    calls = begin_calls(server, 5)
    with contextlib.ExitStack() as idle:
        other = idle.enter_context(Client(server))
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(300):  # all at once, of which the kernel may keep only a few
            connecting = idle.enter_context(socket.socket())
            connecting.setblocking(False)
            connecting.connect_ex(("127.0.0.1", server.port))
        server.process.send_signal(signal.SIGCONT)
        for _ in range(300):  # one by one
            other.wait_received()
            with contextlib.suppress(ConnectionError):
                idle.enter_context(Client(server))
        server.wait_for("WARNING Dropped connections: half of all descriptors are in")
        assert psutil.Process(server.process.pid).num_fds() <= 32
        end_calls(server, calls)
    assert len(server.lines_with("Dropped connections")) == 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_calls_are_saved_at_the_end_with_no_descriptor_left(start_server):
    server = start_server()
    clients = begin_calls(server, 5)
    used = max(map(int, os.listdir(f"/proc/{server.process.pid}/fd"))) + 1
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used, used))
    server.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.wait_closed()
    check_calls(server, 5)


@needs(f"{SOMEBODY} prlimit true", "needs Linux, root and util-linux")
def test_calls_are_saved_when_no_thread_can_be_started(start_server):
    words = f'set -- {SOMEBODY} prlimit --nproc=20 "$@"'
    server = start_server(command=shell_app(words))
    others = [*SOMEBODY.split(), "sh", "-c", " | ".join(["cat"] * 20)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(others, **pipes) as process:
        process.stdin.write(b"\n")
        process.stdout.readline()  # so all 20 processes run
        end_calls(server, begin_calls(server, 5))
