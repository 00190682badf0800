"""The simulated call, as somebody types it in a second terminal."""

import pty
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
import soundfile
from recorder import HEADER, PATIENCE
from simulate_call import read_mulaw

SCRIPT = Path(__file__).with_name("simulate_call.py")
WAV = {track: SCRIPT.with_name(f"{track}.wav") for track in ("inbound", "outbound")}
AUDIO = {track: path.read_bytes()[HEADER:] for track, path in WAV.items()}
START = WAV["inbound"].read_bytes()[: HEADER - 8]  # of a file, up to the chunk "data"
EXTRA = b"LIST\5\0\0\0INFO.\0LIST\4\0\0\0INFO"  # chunks as sox and ffmpeg add them
DATA = b"data\xff\xff\xff\xff"  # begins a chunk of unknown size, as ffmpeg's in a pipe
LOOK = ".\nLook for these files; the recorder's log says where they are:\n"
RATES = {"PCMA": 8000, "L16@16000h": 16000, "L16@24000h": 24000}  # Hz
ENDS = {"Ctrl-C": SIGINT, "recorder was stopped": SIGTERM, "connection broke": SIGKILL}
FAILURES = {
    "no server": ("ws://127.0.0.1:9", "connection refused; is app.py running, and on"),
    "no host": ("ws://a..b", "there is no such host, or no network"),
    "no TLS": ("wss://127.0.0.1:{}", "what answers there speaks no TLS; try ws://"),
    "no url": ("ws://a:x", "the url must be like ws://localhost:5000, not 'ws://a:x'"),
    "what ngrok shows": ("https://a.b", "write wss:// instead of https://: wss://a.b"),
    "an http url": ("http://[::1]:5", "write ws:// instead of http://: ws://[::1]:5"),
    "no calls": ("--calls=0", "--calls must be 1 or more, not 0"),
    "no chunks": ("--loss=1", "--loss must be 0 or more, and below 1, not 1"),
    "no file": ("--inbound=x", "cannot read x: No such file or directory"),
    "no soundfile": ("--codec=PCMA", ".venv/bin/pip install -r tests/requirements.txt"),
    "an endless pause": ("--pause=inbound:1:inf", "--pause must be like inbound:1:2"),
    "a fast pause": ("--pause=inbound:1:1 --fast", "--pause needs the pace of a real"),
    "a late pause": ("--pause=inbound:5.15:1", "--pause inbound:5.15:1: only 5.16 s"),
    "no track": ("--tracks=inbound --pause=outbound:0:1", "--pause outbound:0:1: only"),
}


def begin(*args, stdout=subprocess.PIPE):
    """Start simulate_call.py, and return its process."""
    command = [sys.executable, SCRIPT, *args]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    """Wait until a process ends; check its exit status, and return what it said."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, said
    return said


def saved(server, said):
    """Wait until the recordings named in `said` are saved; return paths and audio."""
    paths = [server.directory / x for x in re.findall(r"\w+-[0-9a-f-]{36}\.wav", said)]
    for path in paths:
        server.wait_for("INFO Saved", path.name)
    return paths, [path.read_bytes()[HEADER:] for path in paths]


def test_a_call_takes_its_time_and_names_its_recordings(server):
    call, fast_call = begin(server.url), begin(server.url, "--fast")
    finish(fast_call)
    assert call.poll() is None  # It takes five seconds.
    said = finish(call)
    (first, second), audio = saved(server, said)
    assert said == f"Streamed 1 call to {server.url}{LOOK}{first.name}\n{second.name}\n"
    assert audio == [AUDIO["inbound"], AUDIO["outbound"]]


@pytest.mark.parametrize("place", [1600, 3840], ids=["inside", "at the last chunk"])
def test_one_track_of_another_file_pauses(server, tmp_path, place):
    path, audio = tmp_path / "short.wav", AUDIO["outbound"][:4000]
    path.write_bytes(START + EXTRA + DATA + audio)
    pause = f"--pause=outbound:{place / 8000}:0.3"
    said = finish(begin(server.url, "--tracks=outbound", f"--outbound={path}", pause))
    assert saved(server, said)[1] == [audio[:place] + b"\xff" * 2400 + audio[place:]]


def test_many_calls_lose_what_the_seed_says(server):
    args = server.url, "--fast", "--calls=3", "--loss=0.02", "--seed"
    said = [finish(begin(*args, seed)) for seed in "12"]  # It is too little for a gap.
    assert all(text.startswith("Streamed 3 calls to ") for text in said)
    _, recorded = saved(server, "".join(said))
    assert len(recorded) == 12 and len({*recorded, *AUDIO.values()}) == 4 + 2


@pytest.mark.parametrize("codec", RATES)
def test_another_codec_sounds_the_same(server, codec):
    subtype, error = ("ALAW", 0.02) if codec == "PCMA" else ("PCM_16", 0)
    (path, _), _ = saved(server, finish(begin(server.url, "--fast", "--codec", codec)))
    samples, rate = soundfile.read(path)
    assert (soundfile.info(path).subtype, rate) == (subtype, RATES[codec])
    original, _ = soundfile.read(WAV["inbound"])
    assert abs(samples - original.repeat(rate // 8000)).max() <= error


def test_the_token_lets_a_call_in(start_server):
    url = start_server(environment={"AUTH_BEARER_TOKEN": "sesame"}).url
    assert "the recorder wants a token (--token)" in finish(begin(url), 1)
    assert "wants another token" in finish(begin(url, "--token=x"), 1)
    assert "is no recorder: invalid" in finish(begin(url, "--token=a\nb"), 1)
    finish(begin(url, "--token=sesame", "--fast"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "my call.wav"
    # Other than mu-law, 1 channel, 8000 Hz; without a chunk "data"
    for place, byte in (20, b"\1"), (22, b"\2"), (25, b"\0"), (HEADER - 8, b"D"):
        path.write_bytes(START[:place] + byte + (START + DATA)[place + 1 :] + b"audio")
        with pytest.raises(ValueError, match=r"ffmpeg -i '.*my call\.wav' -ar 8000 "):
            read_mulaw(path)


@pytest.mark.parametrize("reason", ENDS)
def test_calls_can_end_early(start_server, reason):
    server, shown = start_server(), ""
    leader, follower = pty.openpty()
    with open(follower, "wb") as terminal:
        process = begin(server.url, "--calls=2", stdout=terminal)
    end = process.send_signal if reason == "Ctrl-C" else server.stop
    with open(leader, "rb", 0) as screen:  # To read fails once the process has ended.
        while "1 of 5 s" not in shown:
            shown += screen.read(4096).decode()
        end(ENDS[reason])
        while shown.count(".wav\r\n") < 4:
            shown += screen.read(4096).decode()
    assert process.wait(PATIENCE) == 1
    assert shown.startswith("connecting\r0 of 5 s  \r1 of 5 s  \r")
    assert re.search(rf"\r +\rStreaming to {server.url} ended early: .*{reason}", shown)
    if reason != "connection broke":
        recorded = [audio[:4000] for audio in saved(server, shown)[1]]
        assert recorded == [audio[:4000] for audio in AUDIO.values()] * 2
        assert server.lines_with("WARNING") == []


@pytest.mark.parametrize(("args", "reason"), FAILURES.values(), ids=FAILURES)
def test_one_line_says_what_is_wrong(server, tmp_path, monkeypatch, args, reason):
    (tmp_path / "soundfile.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = begin(*args.format(server.port).split())
    said, _ = process.communicate(timeout=PATIENCE)
    assert reason in said.splitlines()[-1]
    assert said.startswith(("No call to ", "usage: simulate_call.py [options] [url]\n"))
    assert said.count("\n") == process.returncode  # 2 if the arguments are wrong


def test_help_is_the_same_on_every_machine():
    assert not re.search(f"None|{SCRIPT.parent}", finish(begin("--help")))
