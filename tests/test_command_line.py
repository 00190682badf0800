"""Starting the server, with each flag and into each wall."""

import errno
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checks import app_after, check_saved, needs_namespaces, record
from stream import APP, PATIENCE, TRACKS, recording

AUDIO = {track: random.Random(3).randbytes(320) for track in TRACKS}


def check_refusal(texts, *args, command=(sys.executable, APP), **environment):
    """Assert that app.py, run like this, ends with one line, which has `texts`."""
    options = {"env": {**os.environ, **environment}, "timeout": PATIENCE}
    options |= {"stderr": subprocess.PIPE, "text": True}
    done = subprocess.run([*command, *args], check=False, **options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in texts), done.stderr


def test_help_tells_the_defaults():
    text = subprocess.check_output([sys.executable, APP, "--help"], text=True)
    defaults = {"host": "localhost", "port": 5000, "directory": ".", "tracks": "both"}
    for flag, default in defaults.items():
        assert re.search(rf"--{flag} [^-]*\(default: {re.escape(str(default))}\)", text)
    assert "AUTH_BEARER_TOKEN" in text


def test_it_listens_on_every_address_of_localhost(start_server):
    port = random.randrange(20_000, 30_000)  # which no client is given
    server = start_server("--host", "localhost", "--port", str(port))
    assert server.url == f"ws://localhost:{port}"
    for address in {info[4][0] for info in socket.getaddrinfo("localhost", port)}:
        try:
            socket.create_connection((address, port), PATIENCE).close()
        except OSError as error:  # ::1, where there is no IPv6
            assert error.errno == errno.EADDRNOTAVAIL


def test_an_ipv6_address_is_shown_as_a_url(start_server):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    server = start_server("--host", "::1")
    assert server.url.startswith("ws://[::1]:")
    record(server, "six", AUDIO)


@needs_namespaces
def test_the_defaults_and_localhost_without_ipv6(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 localhost\n127.0.0.1 localhost\n")
    simulate_call = Path(__file__).with_name("simulate_call.py")
    script = f"""
        set -e
        ip link set lo up
        echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
        mount --bind {hosts} /etc/hosts
        {sys.executable} {APP} 2> log &
        until grep -q 'Listening on ws://localhost:5000 ' log; do kill -0 $!; done
        {sys.executable} {simulate_call} --fast
        kill $!
        wait $!
    """
    command = ["unshare", "--net", "--mount", "bash", "-c", script]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=PATIENCE)
    assert len(list(tmp_path.glob("*.wav"))) == 2


NO_RESOURCE = "import sys; sys.modules['resource'] = None"  # as on Windows
NO_TEMPORARY = "import tempfile; tempfile._candidate_tempdir_list = list"


@pytest.mark.parametrize("line", [NO_RESOURCE, NO_TEMPORARY])
def test_a_machine_that_has_less(start_server, line):
    server = start_server(command=app_after(line))
    record(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"])


def test_directory(start_server, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    server = start_server("--directory", str(folder))
    server.wait_for(f"and saving to {folder}\n")
    record(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"], folder=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


@pytest.mark.parametrize("track", TRACKS)
def test_tracks(start_server, tmp_path, track):
    server = start_server("--tracks", track)
    record(server, "call", AUDIO)
    check_saved(server, "call", AUDIO[track], track)
    assert list(tmp_path.iterdir()) == [recording(tmp_path, track, "call")]
    (other,) = set(TRACKS) - {track}
    server.wait_for(f"No {other.capitalize()}-call.wav", "not in --tracks")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        texts = [f"--port {port} ", "in use"]
        check_refusal(texts, "--host", "127.0.0.1", "--port", port)


REFUSED = {
    "--port 70000 of 127.0.0.1": ["--host=127.0.0.1", "--port=70000"],
    "--port 5000 of 192.0.2.1": ["--host=192.0.2.1"],
    "--port 5000 of a..b": ["--host=a..b"],
    "folder missing (--directory)": ["--directory=missing"],
    f"folder {APP} (--directory)": [f"--directory={APP}"],
}


@pytest.mark.parametrize(("said", "args"), REFUSED.items())
def test_an_address_or_a_folder_that_cannot_be_had(said, args):
    check_refusal([said], *args)


@needs_namespaces
def test_a_folder_that_cannot_be_written(tmp_path):
    mount = f"mount -t tmpfs -o ro none {tmp_path} && exec"
    script = f"{mount} {sys.executable} {APP} --directory {tmp_path}"
    command = ["unshare", "--mount", "bash", "-c", script]
    check_refusal([f"folder {tmp_path} ", "Read-only"], command=command)


@pytest.mark.parametrize("bad", ["a b", "token\n", "t\u00f6ken", "\udcff"])
def test_a_token_that_no_header_can_hold(bad):
    check_refusal(["AUTH_BEARER_TOKEN must be"], AUTH_BEARER_TOKEN=bad)
