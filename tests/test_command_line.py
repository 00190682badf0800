"""Starting the recorder: each option, and each way in which that can fail."""

import errno
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checks import check_saved, names_in, needs_namespaces, play_call, python_app
from recorder import APP, PATIENCE
from signalwire import TRACKS, recording_path

AUDIO = {track: random.Random(3).randbytes(320) for track in TRACKS}


def check_refusal(line, *args, command=None, environment=None):
    """Check that app.py ends at once, with a status of 1 and one line, `line`."""
    done = subprocess.run(
        [*(command or [sys.executable, APP]), *args],
        check=False,
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert re.fullmatch(line + "\n", done.stderr), done.stderr


def test_help_tells_the_defaults():
    text = subprocess.check_output([sys.executable, APP, "--help"], text=True)
    defaults = {"host": "localhost", "port": 5000, "directory": ".", "tracks": "both"}
    for option, default in defaults.items():
        assert re.search(
            rf"--{option} [^-]*\(default: {re.escape(str(default))}\)", text
        )
    assert "AUTH_BEARER_TOKEN" in text


# Where it listens


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
    play_call(server, "six", AUDIO)


def simulate_on_defaults(folder, *wrapper):
    """Run app.py and simulate_call.py in `folder` without options; check the files."""
    command = [*wrapper, sys.executable, APP]
    with (folder.parent / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stderr=log)
        until = time.monotonic() + PATIENCE
        while "Listening on ws://localhost:5000 " not in Path(log.name).read_text():
            assert time.monotonic() < until and process.poll() is None
        script = Path(__file__).with_name("simulate_call.py")
        enter = ["nsenter", f"--target={process.pid}", "--net"] if wrapper else []
        simulate = [*enter, sys.executable, script, "--fast"]
        subprocess.run(simulate, check=True, timeout=PATIENCE)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert len(list(folder.glob("*.wav"))) == 2


def test_the_defaults(tmp_path):
    try:
        socket.create_server(("127.0.0.1", 5000)).close()
    except OSError as error:
        pytest.skip(f"port 5000 is taken: {error}")
    folder = tmp_path / "recordings"
    folder.mkdir()
    simulate_on_defaults(folder)


@needs_namespaces
def test_localhost_without_ipv6(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 localhost\n127.0.0.1 localhost\n")
    folder = tmp_path / "recordings"
    folder.mkdir()
    script = f"""
        ip link set lo up
        echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
        mount --bind {hosts} /etc/hosts
        exec "$@"
    """
    simulate_on_defaults(
        folder, "unshare", "--net", "--mount", "bash", "-ec", script, "-"
    )


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = f"Cannot listen on --port {port} of 127.0.0.1: .* in use.*"
        check_refusal(line, "--host=127.0.0.1", f"--port={port}")


ADDRESSES = {
    "a port that is too high": ["--host=127.0.0.1", "--port=70000"],
    "an address of another machine": ["--port=5000", "--host=192.0.2.1"],
    "no host": ["--port=5000", "--host=a..b"],
}


@pytest.mark.parametrize("args", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_cannot_be_had(args):
    options = dict(arg.removeprefix("--").split("=") for arg in args)
    line = f"Cannot listen on --port {options['port']} of {options['host']}: .+"
    check_refusal(line, *args)


# Where it saves


def test_directory(start_server, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    server = start_server("--directory", str(folder))
    server.wait_for(f"and saving to {folder}\n")
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"], folder=folder)
    assert names_in(tmp_path) == {"recordings"}


@pytest.mark.parametrize("umask", ["0022", "0077"])
def test_the_umask_says_who_may_read_a_recording(start_server, tmp_path, umask):
    server = start_server(command=python_app("import os", f"os.umask(0o{umask})"))
    play_call(server, "call", AUDIO)
    path = recording_path(tmp_path, "inbound", "call")
    assert path.stat().st_mode & 0o777 == 0o666 & ~int(umask, 8)


def test_a_folder_that_does_not_exist():
    line = "Cannot write to --directory missing: No such file or directory"
    check_refusal(line, "--directory=missing")


def test_a_folder_that_is_a_file():
    check_refusal(f"Cannot write to --directory {APP}: .+", f"--directory={APP}")


@needs_namespaces
def test_a_folder_that_cannot_be_written(tmp_path):
    mount = f"mount -t tmpfs -o ro none {tmp_path} && exec"
    script = f"{mount} {sys.executable} {APP} --directory {tmp_path}"
    command = ["unshare", "--mount", "bash", "-c", script]
    line = f"Cannot write to --directory {tmp_path}: Read-only file system"
    check_refusal(line, command=command)


@pytest.mark.parametrize("track", TRACKS)
def test_tracks(start_server, tmp_path, track):
    server = start_server("--tracks", track)
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO[track], track)
    assert names_in(tmp_path) == {recording_path(tmp_path, track, "call").name}
    (other,) = set(TRACKS) - {track}
    server.wait_for(f"INFO No {other.capitalize()}-call.wav: not in --tracks")


# What else there may be, or not


BAD_TOKENS = {"a space": "a b", "a line break": "token\n", "not ASCII": "t\u00f6ken"}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_that_no_header_can_hold(token):
    line = "AUTH_BEARER_TOKEN must be ASCII characters without spaces"
    check_refusal(line, environment={"AUTH_BEARER_TOKEN": token})


LACKING = {
    "no limit of descriptors": "import sys; sys.modules['resource'] = None",
    "no temporary folder": "import tempfile; tempfile._candidate_tempdir_list = list",
}


@pytest.mark.parametrize("line", LACKING.values(), ids=LACKING)
def test_a_machine_that_lacks_something(start_server, line):
    server = start_server(command=python_app(line))
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"])
