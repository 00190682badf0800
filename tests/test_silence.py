"""Second t of a file is second t of the stream, and no more silence than that needs."""

import asyncio
import base64
import json
import random
import time

import psutil
import pytest
from checks import check_saved, exchange, play_call
from hypothesis import given
from hypothesis import strategies as st
from recorder import HEADER, Client
from signalwire import call_messages, media, recording_path, start, stop, stream_call

from app import ENCODINGS, TRACKS, Track

RNG = random.Random(8)


def new_track(encoding="mulaw", sample_rate=8000):
    return Track("inbound", "call", ENCODINGS[encoding], sample_rate, TRACKS)


def append(track, payload, timestamp, elapsed):
    """Append a payload as if it came `elapsed` ms after `start`."""
    track.began = time.monotonic() - elapsed / 1000
    track.append(payload, timestamp)


def in_time(begin, end, late=0):
    """Return (timestamp, ms at which it comes) for chunks from `begin` to `end` ms."""
    return [(stamp, stamp + late) for stamp in range(begin, end, 20)]


def at_once(moment, begin, end):
    """Return the same for chunks that all come at one `moment`."""
    return [(stamp, moment) for stamp in range(begin, end, 20)]


CASES = {  # chunks before a gap, ms of it that become silence, chunks after it
    "no gap": (in_time(0, 1000), 0, in_time(1000, 1500)),
    "the track begins late": ([], 1000, in_time(1000, 1500)),
    "a gap of 180 ms": (in_time(0, 500), 0, in_time(680, 1000)),
    "a gap of 200 ms": (in_time(0, 500), 200, in_time(700, 1000)),
    "a gap of 1234 ms": (in_time(0, 500), 1234, in_time(1734, 2000)),
    "a gap of an hour": (in_time(0, 500), 3600_000, in_time(3600_500, 3601_000)),
    "a gap, and what follows is held up": (
        in_time(0, 500),
        500,
        at_once(9000, 1000, 9000),
    ),
    "held up without a gap": (in_time(0, 500), 0, at_once(9000, 500, 9000)),
    "a gap in what was held up": (at_once(900, 0, 300), 300, at_once(900, 600, 900)),
    "a gap between two reads": (at_once(200, 0, 200), 400, at_once(800, 600, 800)),
    "start was held up": (at_once(0, 0, 2000), 300, in_time(2300, 2500, late=-2000)),
    "1.9 s ahead of our clock": (in_time(0, 500), 900, in_time(1400, 1500, late=-1900)),
    "2.1 s ahead of our clock": (in_time(0, 500), 0, in_time(1400, 1500, late=-2100)),
    "timestamps go backwards": (in_time(0, 500), 0, in_time(0, 500)[::-1]),
    "a leap": ([(0, 0), (20, 20), (10**15, 40), (10**4000, 60)], 0, in_time(80, 100)),
}


@pytest.mark.parametrize("case", CASES)
def test_silence_is_where_the_gap_was(case):
    before, filled, after = CASES[case]
    track, expected = new_track(), b""
    for chunks, gap in (before, 0), (after, filled):
        expected += b"\xff" * (gap * 8)
        for timestamp, elapsed in chunks:
            payload = RNG.randbytes(160)
            expected += payload
            append(track, payload, timestamp, elapsed)
    assert b"".join(track.chunks) == expected
    assert (track.length, track.silence) == (len(expected), filled * 8)


@pytest.mark.parametrize("drift", [-1e-4, 1e-4], ids=["slower", "faster"])
@pytest.mark.parametrize("loss", [0, 1e-4, 1e-2])
def test_a_call_of_four_hours_on_two_clocks(drift, loss):
    track, rng = new_track(), random.Random(11)
    for stamp in range(0, 4 * 3600_000, 400):
        if rng.random() >= loss and stamp % 600_000 >= 2000:  # a gap each ten minutes
            early = rng.randrange(-100, 100)
            append(track, bytes(3200), stamp + early, int(stamp * (1 - drift)))
            # With the payload, it is at its place, within a gap and the jitter.
            assert abs(track.length // 8 - 400 - stamp) <= 200 + 100


stamps = st.integers(-(10**6), 10**16) | st.integers(0, 10**4)
chunks_in_time = st.tuples(stamps, st.integers(0, 10**4), st.integers(1, 400))


@given(chunks=st.lists(chunks_in_time))
def test_no_more_silence_than_time_has_passed(chunks):
    track, elapsed, received = new_track(), 0, 0
    for stamp, passed, size in chunks:
        elapsed += passed
        received += size
        append(track, bytes(size), stamp, elapsed)
    audio = b"".join(track.chunks)
    assert len(audio) == track.length == received + track.silence
    assert audio.count(0xFF) == track.silence <= 8 * (elapsed + 2100)


@pytest.mark.parametrize("encoding", ["mulaw", "l16"])
def test_a_long_silence_takes_hardly_any_memory(encoding):
    track, process = new_track(encoding, 48_000), psutil.Process()
    before = process.memory_info().rss
    for hour in range(1, 11):
        append(track, b"\1\2", hour * 3600_000, hour * 3600_000)
    assert track.length >= 10 * 3600 * 48_000
    assert process.memory_info().rss - before < 50_000_000


STAMPS = {
    "missing": [0, 20],
    "text": ["", "soon", "20.5", "1e9", "+900", " 900", "9_0", "-900", "\u0669"],
    "numbers": [0, 20.5, 9e9, 10**9, True, float("nan"), float("inf"), -900, 10**4000],
    "other": [[900], {"900": 900}, [], {}, None],
}


@pytest.mark.parametrize("kind", STAMPS)
def test_audio_without_a_usable_timestamp_is_kept(server, call_sid, kind):
    messages, audio = [start(call_sid)], b""
    for stamp in STAMPS[kind]:
        payload = RNG.randbytes(160)
        audio += payload
        data = json.loads(media("inbound", payload, 0))
        data["media"]["timestamp"] = stamp
        if kind == "missing":
            del data["media"]["timestamp"]
        messages.append(json.dumps(data))
    exchange(server, *messages, stop())
    check_saved(server, call_sid, audio)


def test_losses_and_a_pause_in_real_time(server, call_sid):
    audio = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(24000)}
    pause = ("inbound", 0.5, 2.0)
    messages = list(call_messages(call_sid, audio, loss=0.1, seed=9, pause=pause))
    asyncio.run(stream_call(server.url, messages))
    sent = [json.loads(message)["media"] for _, message in messages[2:-1]]
    assert len(sent) < 200
    for track in audio:
        path = recording_path(server.directory, track, call_sid)
        recorded = path.read_bytes()[HEADER:]
        place = 0
        for chunk in sent:
            if chunk["track"] == track:
                payload = base64.b64decode(chunk["payload"])
                found = recorded.index(payload, place)
                assert set(recorded[place:found]) <= {0xFF}
                assert abs(found / 8 - int(chunk["timestamp"])) < 200
                place = found + len(payload)
        assert place == len(recorded)
        seconds = recorded.count(b"\xff" * 160) * 0.02
        assert seconds > 0
        server.wait_for(f"Saved {path.name}", " s (no audio came for ")


def test_a_future_that_comes_now_gets_no_silence(server, call_sid):
    audio = {"inbound": RNG.randbytes(80000)}  # 10 s
    play_call(server, call_sid, audio, pause=("inbound", 5.0, 3600.0))
    check_saved(server, call_sid, audio["inbound"])
    server.wait_for(f"Saved Inbound-{call_sid}.wav, 10.0 s\n")


def test_time_counts_from_start(server, call_sid):
    with Client(server) as client:
        time.sleep(0.5)  # during which the clock must not run
        client.send(start(call_sid), media("inbound", b"\1" * 160, 2400), stop())
        client.wait_closed()
    check_saved(server, call_sid, b"\1" * 160)
    assert server.lines_with(f"Saved Inbound-{call_sid}.wav, 0.0 s\n")
