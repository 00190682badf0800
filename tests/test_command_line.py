"""Starting the server, with each flag and into each wall, and ending it."""

import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import APP, PATIENCE, Server, check_recording, privileged, stream

AUDIO = {track: random.Random(3).randbytes(320) for track in ("inbound", "outbound")}


def run(*args, **options):
    """Run app.py to its end, which is soon; return its exit status and its stderr."""
    command = [sys.executable, APP, *args]
    options = {"capture_output": True, "text": True, "timeout": PATIENCE} | options
    done = subprocess.run(command, check=False, **options)
    return done.returncode, done.stderr


def test_help_tells_the_defaults():
    command = [sys.executable, APP, "--help"]
    text = subprocess.check_output(command, text=True, timeout=PATIENCE)
    for flag, default in [
        ("--host", "localhost"),
        ("--port", "5000"),
        ("--directory", "."),
        ("--tracks", "both"),
    ]:
        assert re.search(rf"{flag} [^-]*\(default: {re.escape(default)}\)", text)
    assert "AUTH_BEARER_TOKEN" in text


def test_it_listens_on_every_address_of_localhost(tmp_path):
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0)}
    server = Server(tmp_path, "--host", "localhost")
    port = int(server.url.rpartition(":")[2])
    assert server.url == f"ws://localhost:{port}"
    server.stop()
    server = Server(tmp_path, "--host", "localhost", "--port", str(port))
    for address in addresses:
        socket.create_connection((address, port), PATIENCE).close()
    assert server.stop() == 0


def test_the_default_is_port_5000_of_localhost(tmp_path):
    try:
        socket.create_server(("127.0.0.1", 5000)).close()
    except OSError as error:
        pytest.skip(f"port 5000 is taken: {error}")
    process = subprocess.Popen(
        [sys.executable, APP], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert "Listening on ws://localhost:5000 " in process.stderr.readline()
    process.terminate()
    process.communicate(timeout=PATIENCE)


def test_an_ipv6_address_is_shown_as_a_url(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    server = Server(tmp_path, "--host", "::1")
    assert server.url.startswith("ws://[::1]:")
    stream(server, "six", AUDIO)
    assert server.stop() == 0


@privileged
def test_localhost_without_ipv6(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 localhost\n127.0.0.1 localhost\n")
    simulate_call = Path(__file__).with_name("simulate_call.py")
    script = f"""
        set -e
        ip link set lo up
        echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
        mount --bind {hosts} /etc/hosts
        {sys.executable} {APP} 2> log &
        until grep -q Listening log; do kill -0 $!; done
        {sys.executable} {simulate_call} --fast ws://127.0.0.1:5000
        kill $!
        wait $!
    """
    command = ["unshare", "--net", "--mount", "bash", "-c", script]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=PATIENCE)
    assert len(list(tmp_path.glob("*.wav"))) == 2


def test_directory(start_server, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    server = start_server("--directory", str(folder))
    stream(server, "call", AUDIO)
    check_recording(folder / "Inbound-call.wav", AUDIO["inbound"])
    server.wait_for(f"Saved {folder / 'Inbound-call.wav'}")
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


@pytest.mark.parametrize("track", ["inbound", "outbound"])
def test_tracks(start_server, tmp_path, track):
    server = start_server("--tracks", track)
    stream(server, "call", AUDIO)
    path = tmp_path / f"{track.capitalize()}-call.wav"
    assert list(tmp_path.iterdir()) == [path]
    check_recording(path, AUDIO[track])


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, error = run("--host", "127.0.0.1", "--port", port, cwd=tmp_path)
    assert status == 1
    assert "Traceback" not in error and error.count("\n") <= 2
    assert f"port {port} " in error and "in use" in error and "--port" in error


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", "70000"), ("192.0.2.1", "5000"), ("a..b", "5000")],
)
def test_an_address_that_cannot_be_listened_on(tmp_path, host, port):
    status, error = run("--host", host, "--port", port, cwd=tmp_path)
    assert status == 1
    assert "Traceback" not in error and error.count("\n") <= 2
    assert f"port {port} of {host}" in error and "--port" in error


def check_folder_is_refused(folder, **options):
    status, error = run("--directory", str(folder), **options)
    assert status == 1
    assert "Traceback" not in error and error.count("\n") <= 2
    assert f"folder {folder}" in error and "--directory" in error


def test_a_folder_that_is_not_there_or_is_none(tmp_path):
    check_folder_is_refused(tmp_path / "missing")
    check_folder_is_refused(APP)


@privileged
def test_a_folder_that_cannot_be_written(tmp_path):
    mount = f"mount -t tmpfs -o ro none {tmp_path} && exec"
    command = f"{mount} {sys.executable} {APP} --directory {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and f"folder {tmp_path}" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(start_server, signum):
    server = start_server()
    stream(server, "call", AUDIO)
    assert server.stop(signum) == 0
    assert "Stopped, saved 2 recordings" in server.lines[-1]
    assert "Traceback" not in "".join(server.lines)
