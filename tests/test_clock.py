"""Second t of a file is second t of the stream, and silence is no more than that."""

import asyncio
import base64
import json
import random

import pytest
from checks import check_saved, record, talk
from hypothesis import given
from hypothesis import strategies as st
from stream import HEADER, call, media, play, recording, start, stop

from app import ENCODINGS, GAP, LEAD, Track

RNG = random.Random(8)


def new_track():
    _, code, silence = ENCODINGS["audio/x-mulaw"]
    return Track(code, silence, sample_rate=8000)


def spoken(begin, end, late=0):
    """Return the timestamps of chunks from `begin` to `end`, and when they come: ms."""
    return [(stamp, stamp + late) for stamp in range(begin, end, 20)]


def at(moment, begin, end):
    """Return the same for chunks that all come at one `moment`."""
    return [(stamp, moment) for stamp in range(begin, end, 20)]


CASES = {  # chunks before a gap, how much of it is filled in ms, chunks after it
    "no gap": (spoken(0, 1000), 0, spoken(1000, 1500)),
    "the track begins late": ([], 1000, spoken(1000, 1500)),
    "a gap of 180 ms": (spoken(0, 500), 0, spoken(680, 1000)),
    "a gap of 200 ms": (spoken(0, 500), 200, spoken(700, 1000)),
    "an hour": (spoken(0, 500), 3600_000, spoken(3600_500, 3601_000)),
    "a gap before a stall": (spoken(0, 500), 500, at(9000, 1000, 9000)),
    "a stall": (spoken(0, 500), 0, at(9000, 500, 9000)),
    "a gap in what was stalled": (at(900, 0, 300), 300, at(900, 600, 900)),
    "read in gulps": (at(200, 0, 200), 400, at(800, 600, 800)),
    "start held up": (at(0, 0, 2000), 300, spoken(2300, 2500, late=-2000)),
    "a clock that is ahead": (spoken(0, 500), 900, spoken(1400, 1500, late=-LEAD)),
    "a clock too far ahead": (spoken(0, 500), 0, spoken(1400, 1500, late=-LEAD - 1)),
    "stamps backwards": (spoken(0, 500), 0, spoken(0, 500)[::-1]),
    "a leap": ([(0, 0), (20, 20), (10**15, 40), (10**4000, 60)], 0, spoken(80, 100)),
}


@pytest.mark.parametrize("name", CASES)
def test_silence_is_where_the_gap_was(name):
    before, filled, after = CASES[name]
    track, expected = new_track(), b""
    for moments, gap in (before, 0), (after, filled):
        expected += b"\xff" * (gap * 8)
        for timestamp, elapsed in moments:
            payload = RNG.randbytes(160)
            expected += payload
            track.append(payload, timestamp, elapsed)
    assert b"".join(track.chunks) == expected
    assert round(track.seconds() * 1000) == len(expected) // 8


@pytest.mark.parametrize("drift", [-1e-4, 1e-4])
@pytest.mark.parametrize("loss", [0, 1e-4, 1e-2])
def test_a_call_of_four_hours_on_two_clocks(drift, loss):
    track, rng = new_track(), random.Random(11)
    for stamp in range(0, 4 * 3600_000, 400):
        if rng.random() >= loss and stamp % 600_000 >= 2000:  # a gap in ten minutes
            early = rng.randrange(-100, 100)
            track.append(bytes(3200), stamp + early, int(stamp * (1 - drift)))
            # Once at its own time, the audio is within what a gap is, and the jitter.
            assert abs(round(track.seconds() * 1000) - 400 - stamp) <= GAP + 100


stamps = st.integers(-(10**6), 10**16) | st.integers(0, 10**4)
moments = st.tuples(stamps, st.integers(0, 10**4), st.integers(1, 400))


@given(moments=st.lists(moments))
def test_no_more_silence_than_time_has_passed(moments):
    track, elapsed, received = new_track(), 0, 0
    for stamp, passed, size in moments:
        elapsed += passed
        received += size
        track.append(bytes(size), stamp, elapsed)
    chunks = b"".join(track.chunks)
    assert len(chunks) == track.length == received + chunks.count(0xFF)
    assert chunks.count(0xFF) <= 8 * (elapsed + LEAD)


STAMPS = {
    "missing": [0, 20],
    "text": ["", "soon", "20.5", "1e9", "+900", " 900", "9_0", "-900", "\u0669"],
    "numbers": [0, 20.5, 9e9, 10**9, True, float("nan"), float("inf"), -900, 10**4000],
    "other": [[900], {"900": 900}, [], {}, None],
}


@pytest.mark.parametrize("name", STAMPS)
def test_audio_without_a_timestamp_is_kept(server, call_sid, name):
    audio = {stamp: RNG.randbytes(160) for stamp in map(json.dumps, STAMPS[name])}
    key = "absent" if name == "missing" else "timestamp"
    messages = [
        media("inbound", payload, 7).replace('"timestamp": "7"', f'"{key}": {stamp}')
        for stamp, payload in audio.items()
    ]
    talk(server, start(call_sid), *messages, stop())
    check_saved(server, call_sid, b"".join(audio.values()))


def test_losses_and_a_pause_in_real_time(server, call_sid):
    audio = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(24000)}
    lossy = {"loss": 0.1, "seed": 9, "pause": ("inbound", 0.5, 2.0)}
    messages = list(call(call_sid, audio, **lossy))
    asyncio.run(play(server.url, messages))
    sent = [json.loads(message)["media"] for _, message in messages[2:-1]]
    assert len(sent) < 200
    for track in audio:
        recorded = recording(server.directory, track, call_sid).read_bytes()[HEADER:]
        place = 0
        for chunk in (chunk for chunk in sent if chunk["track"] == track):
            payload = base64.b64decode(chunk["payload"])
            found = recorded.index(payload, place)
            assert set(recorded[place:found]) <= {0xFF}
            assert abs(found / 8 - int(chunk["timestamp"])) < GAP
            place = found + len(payload)
        assert place == len(recorded)


def test_a_future_that_is_played_now_gets_no_silence(server, call_sid):
    audio = {"inbound": RNG.randbytes(80000)}  # 10 s
    record(server, call_sid, audio, pause=("inbound", 5.0, 3600.0))
    check_saved(server, call_sid, audio["inbound"])
