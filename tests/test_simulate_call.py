"""The simulated call, as somebody types it in a second terminal."""

import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
import soundfile
from recorder import HEADER, PATIENCE
from signalwire import TRACKS
from simulate_call import read_mulaw

SCRIPT = Path(__file__).with_name("simulate_call.py")
WAV = {track: SCRIPT.with_name(f"{track}.wav") for track in TRACKS}
AUDIO = {track: path.read_bytes()[HEADER:] for track, path in WAV.items()}
START = WAV["inbound"].read_bytes()[: HEADER - 8]  # of a file, up to the chunk "data"
DATA = b"data\xff\xff\xff\xff"  # begins a chunk of unknown size, as ffmpeg's in a pipe
LOOK = "Look for these files; the recorder's log says where they are:"
USAGE = "usage: simulate_call.py [options] [url]\nsimulate_call.py: error: "
INSTALL = ".venv/bin/pip install -r tests/requirements.txt"
FORMATS = {"PCMA": "ALAW 8000", "L16@16000h": "PCM_16 16000", "L16@24000h": "PCM_16 24000"}
ENDS = {"Ctrl-C": SIGINT, "recorder was stopped": SIGTERM, "connection broke": SIGKILL}
FAILURES = {
    "no server": ("ws://127.0.0.1:9", "connection refused; is app.py running, and on"),
    "no host": ("ws://a..b", "there is no such host, or no network"),
    "no TLS": ("wss://127.0.0.1:{}", "what answers there speaks no TLS; try ws://"),
    "no url": ("a.b", "the url must be like ws://localhost:5000, not 'a.b'"),
    "no port": ("ws://a:99999", "the url must be like ws://localhost:5000, not"),
    "what ngrok shows": ("https://a.b", "write wss:// instead of https://: wss://a.b"),
    "an http url": ("http://[::1]:5", "write ws:// instead of http://: ws://[::1]:5"),
    "no calls": ("--calls=0", "--calls must be 1 or more, not 0"),
    "no chunks": ("--loss=1", "--loss must be 0 or more, and below 1, not 1"),
    "no file": ("--inbound=x", "cannot read x: No such file or directory"),
    "no such codec": ("--codec=G722", "argument --codec: invalid choice: 'G722'"),
    "an endless pause": ("--pause=inbound:1:inf", "--pause must be like inbound:1:2"),
    "a fast pause": ("--pause=inbound:1:1 --fast", "--pause needs the pace of a real"),
    "a late pause": ("--pause=inbound:5.15:1", "--pause inbound:5.15:1: only 5.16 s"),
    "no track": ("--tracks=inbound --pause=outbound:0:1", "--pause outbound:0:1: only"),
}


def begin(*args, stdout=subprocess.PIPE, **options):
    """Start simulate_call.py, and return its process."""
    options |= {"stdout": stdout, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, SCRIPT, *args], **options)


def finish(process, status=0):
    """Wait until a process ends; check its exit status, and return what it said."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, said
    return said


def saved(server, said):
    """Wait until the recordings named in `said` are saved; return paths and audio."""
    names = re.findall(r"\w+-[0-9a-f-]{36}\.wav", said)
    for name in names:
        server.wait_for("INFO Saved", name)
    paths = [server.directory / name for name in names]
    return paths, [path.read_bytes()[HEADER:] for path in paths]


def test_a_call_takes_its_time_and_names_its_recordings(server):
    began = time.monotonic()
    said = finish(begin(server.url))
    assert time.monotonic() - began > 5
    (inbound, outbound), audio = saved(server, said)
    names = f"{inbound.name}\n{outbound.name}\n"
    assert said == f"Streamed 1 call to {server.url}.\n{LOOK}\n{names}"
    assert audio == [AUDIO["inbound"], AUDIO["outbound"]]


@pytest.mark.parametrize(("track", "at"), [("inbound", 0.2), ("outbound", 0.48)])
def test_a_track_of_another_file_pauses(server, tmp_path, track, at):
    path, audio, place = tmp_path / "short.wav", AUDIO[track][-4000:], int(at * 8000)
    path.write_bytes(START + DATA + audio)
    args = "--tracks", track, f"--{track}", path, f"--pause={track}:{at}:0.3"
    _, recorded = saved(server, finish(begin(server.url, *args)))
    assert recorded == [audio[:place] + b"\xff" * 2400 + audio[place:]]


def test_many_calls_lose_what_the_seed_says(server):
    recorded = []
    for seed in "12":  # They lose less than the recorder makes up for with silence.
        args = "--fast", "--calls=3", "--loss=0.02", f"--seed={seed}"
        recorded += saved(server, finish(begin(server.url, *args)))[1]
    assert len(recorded) == 12 and len({*recorded, *AUDIO.values()}) == 4 + 2


@pytest.mark.parametrize("codec", FORMATS)
def test_another_codec_sounds_the_same(server, codec):
    paths, _ = saved(server, finish(begin(server.url, "--fast", "--codec", codec)))
    for path, original in zip(paths, WAV.values(), strict=True):
        samples, rate = soundfile.read(path)
        assert f"{soundfile.info(path).subtype} {rate}" == FORMATS[codec]
        difference = samples - soundfile.read(original)[0].repeat(rate // 8000)
        assert abs(difference).max() <= (0.02 if codec == "PCMA" else 0)


def test_only_another_codec_needs_soundfile(server, tmp_path):
    (tmp_path / "soundfile.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finish(begin(server.url, "--fast", env=environment))
    said = finish(begin("--codec=PCMA", env=environment), 2)
    assert said == f"{USAGE}--codec PCMA needs soundfile: {INSTALL}\n"


def test_the_token_lets_a_call_in(start_server):
    url = start_server(environment={"AUTH_BEARER_TOKEN": "sesame"}).url
    assert "the recorder wants a token (--token)" in finish(begin(url), 1)
    assert "wants another token" in finish(begin(url, "--token=x"), 1)
    finish(begin(url, "--token=sesame", "--fast"))


def test_files_of_sox_and_ffmpeg_are_read_and_others_refused(tmp_path):
    path = tmp_path / "my call.wav"
    for extra in b"LIST\4\0\0\0INFO", b"LIST\5\0\0\0INFO.\0":
        path.write_bytes(START + extra + DATA + b"audio")
        assert read_mulaw(path) == b"audio"
    # Other than mu-law, 1 channel, 8000 Hz; without a chunk "data"
    for place, byte in (20, b"\1"), (22, b"\2"), (25, b"\0"), (HEADER - 8, b"D"):
        path.write_bytes(START[:place] + byte + (START + DATA)[place + 1 :] + b"audio")
        with pytest.raises(ValueError, match=r"ffmpeg -i '.*my call\.wav' -ar 8000 "):
            read_mulaw(path)


@pytest.mark.parametrize("reason", ENDS)
def test_calls_can_end_early(start_server, reason):
    server, shown = start_server(), ""
    leader, follower = pytest.importorskip("pty").openpty()
    with open(leader, "rb", 0) as screen, open(follower, "wb", 0) as terminal:
        process = begin(server.url, "--calls=2", stdout=terminal)
        while shown.count(".wav\r\n") < 4:
            assert select.select([screen], [], [], PATIENCE)[0], shown
            shown += screen.read(4096).decode()
            if shown.endswith("1 of 5 s  "):
                ended = process if reason == "Ctrl-C" else server.process
                ended.send_signal(ENDS[reason])
    assert process.wait(PATIENCE) == 1
    assert shown.startswith("connecting\r0 of 5 s  \r1 of 5 s  \r")
    assert re.search(rf"\r +\rStreaming to {server.url} ended early: .*{reason}", shown)
    if reason != "connection broke":
        for recorded in saved(server, shown)[1]:
            assert len(recorded) > 4000
            assert any(whole.startswith(recorded) for whole in AUDIO.values())
        assert server.lines_with("WARNING") == []


def test_a_web_server_is_no_recorder():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        process = begin(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        with listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            assert re.search("is no recorder: .*HTTP 404\n", finish(process, 1))


@pytest.mark.parametrize(("args", "reason"), FAILURES.values(), ids=FAILURES)
def test_one_line_says_what_is_wrong(server, args, reason):
    args = args.format(server.port)
    no_call = "://127.0" in args or ".." in args
    said = finish(begin(*args.split()), 1 if no_call else 2)
    *usage, line = said.splitlines()
    assert said.startswith(f"No call to {args}: {reason}" if no_call else USAGE + reason)
    assert said.count("\n") == (1 if no_call else 2)


def test_help_is_the_same_on_every_machine():
    said = finish(begin("--help"))
    assert "None" not in said and str(SCRIPT.parent) not in said
