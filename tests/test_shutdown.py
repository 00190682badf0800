"""How the server ends: soon, by itself, and with all calls saved."""

import signal
import socket
import time

import psutil
import pytest
from checks import begin_call, check_saved, check_wav, exchange, python_app, shell_app
from recorder import PATIENCE, Client
from signalwire import AUDIO, CHUNKS, MEDIA, start, stop


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_calls_in_progress(start_server, signum):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have changed that.
    server = start_server()
    first = begin_call(server, start("first"))
    second = begin_call(server, start("second"), *MEDIA[:25])
    with Client(server) as idle, first, second:
        first.send(*MEDIA[:5])
        first.wait_received()
        first.send(*MEDIA[5:])  # while its reading pauses
        server.process.send_signal(signum)
        server.wait_for("INFO Saving the calls in progress: 2")
        second.send(*MEDIA[25:])  # What comes until the close is saved as well.
        for client in idle, first, second:
            assert client.wait_closed()[0] == 1001
    assert server.wait() == 0
    check_saved(server, "first", AUDIO)
    check_saved(server, "second", AUDIO)
    assert "INFO Stopped" in server.lines[-1]


def test_saving_takes_its_time_and_more_signals_change_nothing(start_server):
    lines = ["import os, time", "os.fsync = lambda fd: time.sleep(6)"]
    server = start_server(command=python_app(*lines))
    with begin_call(server, start("call"), *MEDIA) as client:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Saving the calls in progress: 1")
        client.wait_closed()
    while server.process.poll() is None:  # until its very end
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert server.wait() == 0
    check_saved(server, "call", AUDIO)
    assert len(server.lines_with("Saving the calls in progress")) == 1


def test_it_ends_within_seconds_though_peers_are_silent(start_server):
    server = start_server()
    names = [f"call-{number}" for number in range(40)]
    clients = [begin_call(server, start(name), *MEDIA) for name in names]
    with socket.create_connection((server.host, server.port)):  # without a handshake
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 7  # The README says 5 s, if nobody is busy.
    for name, client in zip(names, clients, strict=True):
        check_saved(server, name, AUDIO)
        client.socket.close()


def test_nohup_is_respected(start_server):
    server = start_server(command=shell_app('set -- nohup "$@"'))
    server.process.send_signal(signal.SIGHUP)
    exchange(server, start("call"), *MEDIA, stop())
    check_saved(server, "call", AUDIO)


def test_a_background_job_ends_on_sigint(start_server):
    assert start_server(command=shell_app('trap "" INT')).stop(signal.SIGINT) == 0


def test_a_log_that_nobody_reads_stops_no_call(start_server):
    server = start_server(command=shell_app("exec 2> >(exec cat >&2)"))
    (reader,) = psutil.Process(server.process.pid).children()
    path = server.directory / "Inbound-in-progress.wav"
    with begin_call(server, start("in-progress"), *MEDIA[:25]) as client:
        reader.suspend()
        for number in range(200):  # Lines of 500 bytes: a pipe takes 64 KiB.
            exchange(server, start(f"call-{number}"), "?" * 500, MEDIA[0], stop())
            check_wav(server.directory / f"Inbound-call-{number}.wav", CHUNKS[0])
        server.process.send_signal(signal.SIGTERM)
        client.send(*MEDIA[25:])
        assert client.wait_closed()[0] == 1001
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < until
    check_wav(path, AUDIO)
    reader.resume()
    assert server.wait() == 0
    assert len(server.lines_with("skipped")) == 200
