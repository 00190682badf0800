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
        server = start_server("--host", "::1")
    except AssertionError as error:
        pytest.skip(f"no IPv6: {error}")
    assert server.url.startswith("ws://[::1]:")
    play_call(server, "six", AUDIO)


def simulate_on_defaults(folder, *wrapper):
    """Run app.py and simulate_call.py in `folder` without options; check the files."""
    log = folder.with_suffix(".log")
    command = [*wrapper, sys.executable, APP]
    process = subprocess.Popen(command, cwd=folder, stderr=log.open("w"))
    until = time.monotonic() + PATIENCE
    while "Listening on ws://localhost:5000 " not in log.read_text():
        assert time.monotonic() < until and process.poll() is None
    enter = ["nsenter", f"--target={process.pid}", "--net"] if wrapper else []
    script = Path(__file__).with_name("simulate_call.py")
    subprocess.run([*enter, sys.executable, script, "--fast"], check=True)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert len(list(folder.glob("*.wav"))) == 2


def test_app_and_simulated_call_work_without_options(tmp_path):
    try:
        socket.create_server(("localhost", 5000)).close()
    except OSError as error:
        pytest.skip(f"port 5000: {error}")
    simulate_on_defaults(tmp_path)


@needs_namespaces
def test_localhost_without_ipv6(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 localhost\n127.0.0.1 localhost\n")
    script = f"""
        ip link set lo up
        echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
        mount --bind {hosts} /etc/hosts
        exec "$@"
    """
    unshare = "unshare", "--net", "--mount", "bash", "-ec", script, "-"
    simulate_on_defaults(tmp_path, *unshare)


# What it refuses


def check_refusal(line, *args, command=(sys.executable, APP), token=""):
    """Check that app.py ends at once, with a status of 1 and one line, `line`."""
    options = {"env": os.environ | {"AUTH_BEARER_TOKEN": token}, "text": True}
    done = subprocess.run(
        [*command, *args], check=False, capture_output=True, **options
    )
    assert done.returncode == 1
    assert re.fullmatch(line + "\n", done.stderr), done.stderr


def test_a_port_that_is_taken_is_refused(server):
    line = f"Cannot listen on --port {server.port} of 127.0.0.1: .* in use.*"
    check_refusal(line, "--host=127.0.0.1", f"--port={server.port}")


REFUSED = {
    "--port=70000": "Cannot listen on --port 70000 of localhost: .+",
    "--host=192.0.2.1": "Cannot listen on --port 5000 of 192.0.2.1: .+",
    "--host=a..b": "Cannot listen on --port 5000 of a..b: .+",
    "--directory=missing": "Cannot write to --directory missing: No such .+",
    "--directory=/dev/null": "Cannot write to --directory /dev/null: .+",
}


@pytest.mark.parametrize(("arg", "line"), REFUSED.items(), ids=REFUSED)
def test_an_option_that_cannot_be_used_is_refused(arg, line):
    check_refusal(line, arg)


@needs_namespaces
def test_a_folder_that_cannot_be_written_to_is_refused():
    script = f"mount -t tmpfs -o ro none /mnt && exec {sys.executable} {APP}"
    command = ["unshare", "--mount", "bash", "-c", f"{script} --directory /mnt"]
    check_refusal("Cannot write to --directory /mnt: Read-only .+", command=command)


@pytest.mark.parametrize("token", ["a b", "token\n", "t\u00f6ken"], ids=ascii)
def test_a_token_that_no_header_can_hold_is_refused(token):
    check_refusal("AUTH_BEARER_TOKEN must be ASCII .+ without spaces", token=token)


# What it saves, and where


def test_recordings_are_saved_in_the_directory(start_server, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    server = start_server("--directory", str(folder))
    line = server.wait_for(f"and saving to {folder}\n")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO Listening on ", line)
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"], folder=folder)
    assert names_in(tmp_path) == {"recordings"}


@pytest.mark.parametrize("track", TRACKS)
def test_only_the_chosen_track_is_saved(start_server, tmp_path, track):
    server = start_server("--tracks", track)
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO[track], track)
    assert names_in(tmp_path) == {recording_path(tmp_path, track, "call").name}
    (other,) = set(TRACKS) - {track}
    server.wait_for(f"INFO No {other.capitalize()}-call.wav: not in --tracks")


@pytest.mark.parametrize("umask", ["0o022", "0o077"])
def test_the_umask_says_who_may_read_a_recording(start_server, tmp_path, umask):
    server = start_server(command=python_app("import os", f"os.umask({umask})"))
    play_call(server, "call", AUDIO)
    path = recording_path(tmp_path, "inbound", "call")
    assert path.stat().st_mode & 0o777 == 0o666 & ~int(umask, 8)


LACKING = {
    "no limit of descriptors": "import sys; sys.modules['resource'] = None",
    "no temporary folder": "import tempfile; tempfile._candidate_tempdir_list = list",
}


@pytest.mark.parametrize("line", LACKING.values(), ids=LACKING)
def test_it_runs_without_descriptor_limit_or_temporary_folder(start_server, line):
    server = start_server(command=python_app(line))
    play_call(server, "call", AUDIO)
    check_saved(server, "call", AUDIO["inbound"])
