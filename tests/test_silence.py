"""Second t of a file is second t of the stream, and no more silence than that needs."""

import json
import random
import time

import psutil
import pytest
from checks import check_saved, exchange
from hypothesis import given
from hypothesis import strategies as st
from recorder import Client
from signalwire import media, start, stop

from app import ENCODINGS, TRACKS, Track

CHUNK = random.Random(8).randbytes(160)
MULAW = "inbound", "call", ENCODINGS["mulaw"], 8000, TRACKS  # the arguments of Track
STAMPS = st.integers(-(10**6), 10**16) | st.integers(0, 10**4)


def append(track, payload, timestamp, elapsed):
    """Append a payload as if it came `elapsed` ms after `start`."""
    track.began = time.monotonic() - elapsed / 1000
    track.append(payload, timestamp)


def chunks(begin, end, at=None, late=0):
    """Return (timestamp, ms when it comes) for each: all `at` once, or one by one."""
    return [(n, n + late if at is None else at) for n in range(begin, end, 20)]


CASES = {  # chunks before a gap, ms of it that become silence, chunks after it
    "the track begins late": ([], 1000, chunks(1000, 1500)),
    "a gap of 180 ms": (chunks(0, 500), 0, chunks(680, 1000)),
    "a gap of 200 ms": (chunks(0, 500), 200, chunks(700, 1000)),
    "a gap of 1234 ms": (chunks(0, 500), 1234, chunks(1734, 2000)),
    "a gap of an hour": (chunks(0, 500), 3600_000, chunks(3600_500, 3601_000)),
    "held up after a gap": (chunks(0, 500), 500, chunks(1000, 9000, at=9000)),
    "held up without a gap": (chunks(0, 500), 0, chunks(500, 9000, at=9000)),
    "held up with a gap": (chunks(0, 300, at=900), 300, chunks(600, 900, at=900)),
    "start was held up": (chunks(0, 2000, at=0), 300, chunks(2300, 2500, late=-2000)),
    "1.9 s ahead of our clock": (chunks(0, 500), 900, chunks(1400, 1500, late=-1900)),
    "2.1 s ahead of our clock": (chunks(0, 500), 0, chunks(1400, 1500, late=-2100)),
    "timestamps go backwards": (chunks(0, 500), 0, chunks(0, 500)[::-1]),
    "a leap": ([(0, 0), (10**15, 20), (10**4000, 40)], 0, chunks(60, 100)),
    "losses that add up": (chunks(0, 400)[::2], 200, chunks(400, 500)),
}


@pytest.mark.parametrize("case", CASES)
def test_silence_is_where_the_gap_was(case):
    before, filled, after = CASES[case]
    track, expected = Track(*MULAW), b""
    for stamps, gap in (before, 0), (after, filled):
        expected += b"\xff" * (gap * 8)
        for timestamp, elapsed in stamps:
            payload = random.randbytes(160)
            append(track, payload, timestamp, elapsed)
            expected += payload
    assert b"".join(track.chunks) == expected
    assert (track.length, track.silence) == (len(expected), filled * 8)


@given(st.lists(st.tuples(STAMPS, st.integers(0, 10**4), st.integers(1, 400))))
def test_no_more_silence_than_time_has_passed(sent):
    track, elapsed, received = Track(*MULAW), 0, 0
    for stamp, passed, size in sent:
        elapsed += passed
        received += size
        append(track, bytes(size), stamp, elapsed)
    audio = b"".join(track.chunks)
    assert len(audio) == track.length == received + track.silence
    assert audio.count(0xFF) == track.silence <= 8 * (elapsed + 2100)


def test_a_long_silence_takes_hardly_any_memory():
    track, process = Track(*MULAW), psutil.Process()
    before = process.memory_info().rss
    for hour in range(1, 11):
        append(track, b"\1\2", hour * 3600_000, hour * 3600_000)
    assert track.length >= 10 * 3600 * 8000
    assert process.memory_info().rss - before < 50_000_000


def test_audio_without_a_usable_timestamp_is_kept(server, call_sid):
    stamps = [
        "+900",
        " 900",
        "-900",
        "9_00",
        "20.5",
        "1e9",
        "",
        "soon",
        "\u0669",
        "9" * 5000,
    ]
    stamps += [-900, 20.5, 9e9, 10**9, 10**4000, float("nan"), float("inf"), True, None]
    stamps += [[], [900], {}, {"900": 900}]
    data = json.loads(media("inbound", CHUNK, 0))
    del data["media"]["timestamp"]
    messages = [json.dumps(data)]
    for stamp in stamps:
        data["media"]["timestamp"] = stamp
        messages.append(json.dumps(data))
    exchange(server, start(call_sid), *messages, stop())
    check_saved(server, call_sid, CHUNK * len(messages))


def test_time_counts_from_start(server, call_sid):
    with Client(server) as client:
        time.sleep(0.5)  # during which the clock must not run
        client.send(start(call_sid), media("inbound", CHUNK, 2400))
        time.sleep(0.5)
        client.send(media("outbound", CHUNK, 2400), stop())
        client.wait_closed()
    check_saved(server, call_sid, CHUNK)
    check_saved(server, call_sid, b"\xff" * 8 * 2400 + CHUNK, "outbound")
    server.wait_for(f"Saved Inbound-{call_sid}.wav, 0.0 s\n")
