"""How the server ends: soon, by itself, and with all calls saved."""

import random
import signal
import socket
import sys
import time

import psutil
import pytest
from checks import check_saved, check_wav, exchange, play_call, python_app, shell_app
from recorder import APP, PATIENCE, Client
from signalwire import media, start, stop

CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]
RUN = [sys.executable, APP]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_calls_in_progress(start_server, signum):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have changed that.
    server = start_server()
    with Client(server) as idle, Client(server) as first, Client(server) as second:
        first.send(start("first"), *MEDIA[:25])
        second.send(start("second"), *MEDIA[:25])
        first.wait_received()
        second.wait_received()
        server.process.send_signal(signum)
        server.wait_for("INFO Saving the calls in progress: 2")
        second.send(*MEDIA[25:])  # What comes until the close is saved as well.
        for client in idle, first, second:
            assert client.wait_closed()[0] == 1001
    assert server.wait() == 0
    check_saved(server, "first", b"".join(CHUNKS[:25]))
    check_saved(server, "second", AUDIO)
    assert "INFO Stopped" in server.lines[-1]


def test_more_signals_change_nothing(start_server):
    lines = ["import os, time", "os.fsync = lambda fd: time.sleep(1)"]
    server = start_server(command=python_app(*lines))
    with Client(server) as client:
        client.send(start("call"), *MEDIA)
        client.wait_received()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Saving the calls in progress: 1")
        for signum in signal.SIGINT, signal.SIGTERM, signal.SIGINT:
            server.process.send_signal(signum)
        client.wait_closed()
        assert server.wait() == 0
    check_saved(server, "call", AUDIO)
    assert len(server.lines_with("Saving the calls in progress")) == 1


def test_it_ends_within_seconds_though_peers_are_silent(start_server):
    """The README promises five seconds; a busy machine gets some more."""
    server = start_server()
    clients = []
    for number in range(40):
        client = Client(server)
        client.send(start(f"call-{number}"), *MEDIA)
        client.wait_received()
        clients.append(client)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 7
    for number, client in enumerate(clients):
        check_saved(server, f"call-{number}", AUDIO)
        client.socket.close()


def test_it_ends_within_seconds_though_a_handshake_hangs(start_server):
    server = start_server()
    with Client(server) as client, socket.create_connection(("127.0.0.1", server.port)):
        client.send(start("call"), *MEDIA)
        client.wait_received()
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        client.wait_closed()
        check_saved(server, "call", AUDIO)
        assert server.wait() == 0
        assert time.monotonic() - began < 8


def test_saving_takes_its_time(start_server):
    lines = ["import os, time", "os.fsync = lambda fd: time.sleep(12)"]
    server = start_server(command=python_app(*lines))
    with Client(server) as client:
        client.send(start("call"), *MEDIA)
        client.wait_received()
        server.process.send_signal(signal.SIGTERM)
        client.wait_closed()
        server.wait_for("ERROR Still saving: kill -9 would lose those calls")
        assert server.wait() == 0
    check_saved(server, "call", AUDIO)


def test_nohup_is_respected(start_server):
    server = start_server(command=shell_app('set -- nohup "$@"'))
    server.process.send_signal(signal.SIGHUP)
    play_call(server, "call", {"inbound": AUDIO})
    check_saved(server, "call", AUDIO)


def test_a_background_job_ends_on_sigint(start_server):
    assert start_server(command=shell_app('trap "" INT')).stop(signal.SIGINT) == 0


def test_a_log_that_nobody_reads_stops_no_call(start_server):
    server = start_server(
        command=["bash", "-c", 'exec "$@" 2> >(exec cat >&2)', "-", *RUN]
    )
    (reader,) = psutil.Process(server.process.pid).children()
    with Client(server) as client:
        client.send(start("in-progress"), *MEDIA[:25])
        client.wait_received()
        reader.suspend()
        for number in range(
            200
        ):  # lines of 500 bytes, more than a pipe of 64 KiB takes
            exchange(server, start(f"call-{number}"), "?" * 500, MEDIA[0], stop())
            check_wav(server.directory / f"Inbound-call-{number}.wav", CHUNKS[0])
        server.process.send_signal(signal.SIGTERM)
        client.send(*MEDIA[25:])
        assert client.wait_closed()[0] == 1001
    path = server.directory / "Inbound-in-progress.wav"
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < until
    check_wav(path, AUDIO)
    reader.resume()
    assert server.wait() == 0
    assert len(server.lines_with("skipped")) == 200
