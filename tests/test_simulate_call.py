"""The call without a phone, as somebody types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, check_recording
from simulate_call import read_mulaw

SCRIPT = Path(__file__).with_name("simulate_call.py")
AUDIO = {
    track: read_mulaw(SCRIPT.with_name(f"{track}.wav"))
    for track in ("inbound", "outbound")
}


def simulate(*args):
    """Run simulate_call.py; return its exit status, its output and its errors."""
    command = [sys.executable, SCRIPT, *map(str, args)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout, done.stderr


def check_files(folder, output, tracks=("inbound", "outbound")):
    """Assert that the folder has just the files that `output` names, and their audio."""
    names = {word for word in output.split() if word.endswith(".wav")}
    assert names == {path.name for path in folder.iterdir()}
    assert {name.partition("-")[0].lower() for name in names} == set(tracks)
    for name in names:
        check_recording(folder / name, AUDIO[name.partition("-")[0].lower()])


def test_two_short_recordings():
    for track in AUDIO:
        assert SCRIPT.with_name(f"{track}.wav").stat().st_size < 50_000
    assert 2 * 8000 < len(AUDIO["outbound"]) < len(AUDIO["inbound"])


def test_a_call_in_real_time(start_server, tmp_path):
    status, output, errors = simulate(start_server().url)
    assert (status, errors) == (0, "")
    assert output.count("\n") == 2
    check_files(tmp_path, output)


@pytest.mark.parametrize("track", ["inbound", "outbound"])
def test_one_track(start_server, tmp_path, track):
    _, output, _ = simulate(start_server().url, "--fast", "--tracks", track)
    check_files(tmp_path, output, [track])


def test_many_calls(start_server, tmp_path):
    status, output, _ = simulate(start_server().url, "--fast", "--calls", 10)
    assert status == 0
    assert "10 call(s)" in output and "18 more" in output
    assert len(list(tmp_path.glob("Inbound-*.wav"))) == 10
    for path in tmp_path.iterdir():
        check_recording(path, AUDIO[path.name.partition("-")[0].lower()])


def test_other_files(start_server, tmp_path):
    swapped = ["--inbound", SCRIPT.with_name("outbound.wav")]
    simulate(start_server().url, "--fast", *swapped)
    (path,) = tmp_path.glob("Inbound-*.wav")
    check_recording(path, AUDIO["outbound"])


def test_the_token(start_server, tmp_path):
    server = start_server(environment={"AUTH_BEARER_TOKEN": "sesame"})
    status, _, error = simulate(server.url, "--fast")
    assert status == 1
    assert "401" in error and error.count("\n") == 1
    status, output, _ = simulate(server.url, "--fast", "--token", "sesame")
    assert status == 0
    check_files(tmp_path, output)


def test_losses_are_the_same_for_a_seed(start_server, tmp_path):
    server = start_server()
    for seed in 1, 1, 2:
        simulate(server.url, "--fast", "--loss", 0.1, "--seed", seed)
    recordings = [path.read_bytes() for path in tmp_path.glob("Inbound-*.wav")]
    assert len(recordings) == 3 and len(set(recordings)) == 2
    assert max(map(len, recordings)) < len(AUDIO["inbound"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ws://127.0.0.1:9"], "ws://127.0.0.1:9"),
        (["localhost:5000"], "localhost:5000"),
        (["--inbound", "/missing.wav"], "/missing.wav"),
        (["--inbound", SCRIPT], "not a WAV"),
        (["--calls", "0"], "--calls"),
        (["--loss", "2"], "--loss"),
    ],
)
def test_bad_arguments_give_a_line(args, message):
    status, _, error = simulate(*args)
    assert status == 1
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [["--pause", "x:1:2"], ["--pause", "inbound"], ["--tracks", "none"], ["--x"]],
)
def test_bad_options_give_a_line_after_the_usage(args):
    status, _, error = simulate(*args)
    assert status == 2
    assert args[0] in error.splitlines()[-1]
