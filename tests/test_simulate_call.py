"""The call without a phone, as somebody types it."""

import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from simulate_call import read_mulaw
from stream import HEADER, PATIENCE, TRACKS

SCRIPT = Path(__file__).with_name("simulate_call.py")
AUDIO = {t: SCRIPT.with_name(f"{t}.wav").read_bytes()[HEADER:] for t in TRACKS}
START = SCRIPT.with_name("inbound.wav").read_bytes()[: HEADER - 8]
DATA = b"data\xff\xff\xff\xff"  # a chunk of unknown size, as ffmpeg puts it in a pipe
ENDS = {"Ctrl-C": "SIGINT", "was stopped": "SIGTERM", "broke": "SIGKILL"}
FAILURES = [
    ("ws://127.0.0.1:9", "refused; is app.py running"),
    ("wss://127.0.0.1:{port}", "no TLS"),
    ("localhost:5000", "must be like ws://"),
    ("--loss 1", "--loss must be"),
    ("--pause x", "--pause must be"),
    ("--pause inbound:1:inf", "--pause must be"),
    ("--inbound missing.wav", "Cannot read missing.wav: No such file"),
]


def begin(*args, stdout=subprocess.PIPE):
    """Start simulate_call.py; return its process."""
    command = [sys.executable, SCRIPT, *args]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    """Wait for the end, with `status`; return the two lines said, or one of failure."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.count("\n")) == (status, 2 - status), said
    return said


def recorded(folder, said):
    """Return the audio, by track, of the recordings in `folder` that are in `said`."""
    paths = [path for path in folder.iterdir() if path.name in said]
    return {p.name.partition("-")[0].lower(): p.read_bytes()[HEADER:] for p in paths}


@pytest.mark.parametrize("track", TRACKS)
def test_one_track_of_another_file_with_a_pause(server, tmp_path, track):
    path, audio = tmp_path / "short.wav", AUDIO[track][-4000:]
    path.write_bytes(START + DATA + audio)
    args = "--tracks", track, f"--{track}", path, "--pause", f"{track}:0.2:0.3"
    said = finish(begin(server.url, *args))
    paused = audio[:1600] + b"\xff" * 2400 + audio[1600:]
    assert recorded(server.directory, said) == {track: paused}


def test_many_calls_lose_what_the_seed_says(start_server, tmp_path):
    args = start_server().url, "--fast", "--calls", "3", "--loss", "0.02", "--seed"
    for seed in "12":  # they lose less than the recorder makes up for by silence
        assert "and 4 more" in finish(begin(*args, seed))
    recordings = [path.read_bytes() for path in tmp_path.glob("Outbound-*.wav")]
    assert len(recordings) == 6 and len(set(recordings)) == 2


def test_the_token(start_server, tmp_path):
    url = start_server(AUTH_BEARER_TOKEN="sesame").url
    assert "a token (--token)" in finish(begin(url), 1)
    assert "another token (--token)" in finish(begin(url, "--token", "x"), 1)
    said = finish(begin(url, "--fast", "--token", "sesame"))
    assert recorded(tmp_path, said) == AUDIO


def test_files_of_sox_and_ffmpeg(tmp_path):
    path = tmp_path / "my call.wav"
    for extra in b"LIST\4\0\0\0INFO", b"LIST\5\0\0\0INFO.\0":
        path.write_bytes(START + extra + DATA + AUDIO["inbound"])
        assert read_mulaw(path) == AUDIO["inbound"]
    # Big-endian; other than mu-law, 1 channel, 8000 Hz
    for place, byte in (3, b"X"), (20, b"\1"), (22, b"\2"), (25, b"\0"):
        path.write_bytes(START[:place] + byte + START[place + 1 :] + DATA + b"audio")
        with pytest.raises(SystemExit, match="ffmpeg -i '.*my call.wav' -ar 8000 "):
            read_mulaw(path)


@pytest.mark.parametrize("reason", ENDS)
def test_a_call_that_ends_early(start_server, tmp_path, reason):
    server = start_server()
    leader, follower = pytest.importorskip("pty").openpty()
    with open(leader, "rb", 0) as screen, open(follower, "wb", 0) as terminal:
        process = begin(server.url, stdout=terminal)
        shown = ""
        while "1 call(s)" not in shown:
            assert select.select([screen], [], [], PATIENCE)[0]
            shown += screen.read(4096).decode()
        ended = process if reason == "Ctrl-C" else server.process
        ended.send_signal(signal.Signals[ENDS[reason]])
        assert process.wait(PATIENCE) == 1
        while not shown.endswith("\r\n"):
            shown += screen.read(4096).decode()
    assert re.fullmatch(rf"\r0 s.*\r1 s.*\r {{40}}\rStreaming .*{reason}.*\r\n", shown)
    server.stop()
    audio = recorded(tmp_path, shown)
    assert len(audio) == (0 if reason == "broke" else 2)
    assert all(AUDIO[track].startswith(audio[track]) for track in audio)


def test_a_web_server_is_no_recorder():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        process = begin(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        with listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            assert "HTTP 404" in finish(process, 1)


@pytest.mark.parametrize(("args", "reason"), FAILURES)
def test_one_line_says_what_is_wrong(server, args, reason):
    assert reason in finish(begin(*args.format(port=server.port).split()), 1)
