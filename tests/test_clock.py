"""Second t of a file is second t of the stream, and silence is no more than that."""

import asyncio
import base64
import json
import random
import uuid

import pytest
from conftest import check_recording, open_stream, wait_closed
from hypothesis import given
from hypothesis import strategies as st
from simulate_call import MULAW, call, media, play, start, stop

from app import DRIFT, EARLY, ENCODINGS, Track

RNG = random.Random(8)
AUDIO = {track: RNG.randbytes(16000) for track in ("inbound", "outbound")}  # 2 s


def silence(milliseconds):
    return b"\xff" * (milliseconds * 8)


def schedule(moments, track="inbound"):
    """Return messages, each with its time, and their audio.

    `moments` are pairs of a time and a timestamp in ms, for a chunk of 20 ms each.
    """
    chunks = [(at, stamp, RNG.randbytes(160)) for at, stamp in moments]
    messages = [(at, media(track, payload, stamp)) for at, stamp, payload in chunks]
    return messages, b"".join(payload for _, _, payload in chunks)


def spoken(begin, end, late=0, ahead=0):
    """Return the moments of chunks from `begin` to `end` ms, which come `late` ms.

    Their timestamps are `ahead` ms more.
    """
    return [(stamp + late, stamp + ahead) for stamp in range(begin, end, 20)]


class Scene:
    """A call that is played in real time, and the tracks that are to come of it."""

    def __init__(self, messages, media_format=MULAW, **tracks):
        self.call_sid = str(uuid.uuid4())
        first = start(self.call_sid, ["inbound", "outbound"], media_format)
        # A list in the order of time, in which what is due at once stays in its order.
        messages = sorted(messages, key=lambda message: message[0])
        messages = [(0, first), *messages, (messages[-1][0], stop())]
        # They start a little later, when all of them have been let in.
        self.messages = [(at + 300, message) for at, message in messages]
        self.media_format = media_format
        self.tracks = tracks


def hole(before, after, filled):
    """Return a scene with the chunks `before` and `after`, and between them silence."""
    before, audio_before = schedule(before)
    after, audio_after = schedule(after)
    audio = audio_before + silence(filled) + audio_after
    return Scene(before + after, inbound=audio)


def paused(encoding, sample_rate, nothing):
    """Return a scene of a track that pauses for 1 s, and is `nothing` meanwhile."""
    media_format = {"encoding": encoding, "sampleRate": sample_rate}
    messages = call("", AUDIO, media_format, pause=("outbound", 0.1, 1))
    rate = sample_rate * (2 if "16" in encoding else 1)
    at = rate // 10
    outbound = AUDIO["outbound"][:at] + nothing * sample_rate + AUDIO["outbound"][at:]
    tracks = {"inbound": AUDIO["inbound"], "outbound": outbound}
    return Scene(list(messages)[2:-1], media_format, **tracks)


def late_track():
    """Return a scene in which the outbound track begins after a second."""
    inbound, heard = schedule(spoken(0, 1500))
    outbound, said = schedule(spoken(1000, 1500), "outbound")
    return Scene(inbound + outbound, inbound=heard, outbound=silence(1000) + said)


def held_up():
    """Return a scene in which `start` comes 250 ms late, and with it what was said."""
    begun, heard = schedule([(0, stamp) for stamp in range(0, 250, 20)])
    inbound, more = schedule(spoken(260, 1500, late=-250))
    outbound, said = schedule(spoken(1000, 1500, late=-250), "outbound")
    tracks = {"inbound": heard + more, "outbound": silence(1000) + said}
    return Scene(begun + inbound + outbound, **tracks)


SCENES = {
    "start held up": held_up(),
    "without holes": hole(spoken(0, 1000), spoken(1000, 1500), 0),
    "mu-law pause": paused("audio/x-mulaw", 8000, b"\xff"),
    "A-law pause": paused("audio/x-alaw", 8000, b"\xd5"),
    "L16 pause": paused("audio/x-L16", 16000, b"\0\0"),
    "L16 pause at 24 kHz": paused("audio/x-L16", 24000, b"\0\0"),
    "late track": late_track(),
    "hole of 180 ms": hole(spoken(0, 500), spoken(680, 1000), 0),
    "hole of 200 ms": hole(spoken(0, 500), spoken(700, 1000), 200),
    "stall and burst": hole(
        spoken(0, 500),
        [(1500, s) for s in range(500, 1500, 20)] + spoken(1500, 1800),
        0,
    ),
    "hole in a burst": hole(
        [*spoken(0, 500), *((1500, s) for s in range(500, 800, 20))],
        [*((1500, s) for s in range(1100, 1500, 20)), *spoken(1500, 1700)],
        300,
    ),
    "burst at the start": hole(
        [(0, s) for s in range(0, 1000, 20)], spoken(1300, 1500, late=-1000), 300
    ),
    "100 ms early": hole(spoken(0, 500), spoken(1000, 1200, ahead=100), 600),
    "100 ms late": hole(spoken(0, 500), spoken(1000, 1200, ahead=-100), 400),
    # As they come faster than that, no silence is due.
    "a leap of the stamps": hole(spoken(0, 500), spoken(500, 900, ahead=3000), 0),
    "stamps in microseconds": hole(
        [(at, at * 1000) for at in range(0, 1000, 20)], spoken(1000, 1200), 0
    ),
    "stamps backwards": hole(
        [(at, 1000 - at) for at in range(0, 1000, 20)], spoken(1000, 1200), 0
    ),
}


@pytest.fixture(scope="module")
def scenes(server):
    """The scenes, after all of them have been played at the same time."""

    async def play_all():
        plays = (play(server.url, scene.messages) for scene in SCENES.values())
        await asyncio.gather(*plays)

    asyncio.run(play_all())
    return SCENES


@pytest.mark.parametrize("name", SCENES)
def test_silence_is_where_the_hole_was(server, scenes, name):
    scene = scenes[name]
    about = scene.media_format["encoding"], scene.media_format["sampleRate"]
    for track, audio in scene.tracks.items():
        path = server.directory / f"{track.capitalize()}-{scene.call_sid}.wav"
        check_recording(path, audio, *about)


@pytest.mark.parametrize("ahead", [600, 1_790_000_000_000])
def test_stamps_that_do_not_begin_with_0(server, call_sid, ahead):
    before, said = schedule(spoken(0, 500, ahead=ahead))
    after, answered = schedule(spoken(1000, 1200, ahead=ahead))
    messages = [(0, start(call_sid, ["inbound"])), *before, *after, (1200, stop())]
    asyncio.run(play(server.url, messages))
    recorded = (server.directory / f"Inbound-{call_sid}.wav").read_bytes()[58:]
    filled = len(recorded) - len(said) - len(answered)
    # As far as the first chunk was behind the start, the hole is taken to be longer.
    assert 500 <= filled / 8 < 700
    assert recorded == said + b"\xff" * filled + answered


def test_losses_and_a_pause(server, call_sid):
    audio = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(24000)}
    lossy = {"loss": 0.1, "seed": 9, "pause": ("inbound", 0.5, 2.0)}
    messages = list(call(call_sid, audio, **lossy))
    asyncio.run(play(server.url, messages))
    sent = [json.loads(message)["media"] for _, message in messages[2:-1]]
    for track, data in audio.items():
        path = server.directory / f"{track.capitalize()}-{call_sid}.wav"
        recorded = path.read_bytes()[58:]
        chunks = [chunk for chunk in sent if chunk["track"] == track]
        assert len(chunks) < len(data) // 160
        assert abs(len(recorded) / 8 - messages[-1][0]) < 250
        place = 0
        for chunk in chunks:
            payload = base64.b64decode(chunk["payload"])
            found = recorded.index(payload, place)
            assert set(recorded[place:found]) <= {0xFF}
            assert abs(found / 8 - int(chunk["timestamp"])) < 200
            place = found + len(payload)
        assert place == len(recorded)


STAMPS = {
    "faster than life": range(0, 60_000, 60),
    "later and later": range(0, 50_000_000, 50_000),
    "backwards": range(20_000, 0, -20),
    "a leap": [*range(0, 2000, 20), *range(5000, 7000, 20)],
    "1e15": [0, 10**15, 10**15 + 20, 10**30, 10**4000],
    "negative": [0, -20, -(10**15)],
    "missing": [0, None, None, 60],
    "text": ["", "soon", "20.5", "1e9", "+9000", " 9000", "9_000", "\u0669000"],
    "numbers": [0, 20.5, 9e9, 10**9, True, False],
    "other": [[9000], {"9000": 9000}, [], {}],
    "not a number": [0, float("nan"), float("inf"), float("-inf"), 80],
}


@pytest.mark.parametrize("name", STAMPS)
def test_a_burst_is_kept_as_it_came(server, call_sid, name):
    payloads = [RNG.randbytes(160) for _ in STAMPS[name]]
    with open_stream(server, call_sid) as websocket:
        for stamp, payload in zip(STAMPS[name], payloads, strict=True):
            message = json.loads(media("inbound", payload, 0))
            message["media"]["timestamp"] = stamp
            websocket.send(json.dumps(message))
        websocket.send(stop())
        wait_closed(websocket)
    path = server.directory / f"Inbound-{call_sid}.wav"
    check_recording(path, b"".join(payloads))


def test_a_call_that_is_played_faster_than_life(server, call_sid):
    lossy = {"loss": 0.2, "seed": 10, "pause": ("inbound", 1.0, 2.0)}
    messages = list(call(call_sid, AUDIO, **lossy))
    asyncio.run(play(server.url, messages, fast=True))
    sent = [json.loads(message)["media"] for _, message in messages[2:-1]]
    for track in AUDIO:
        payloads = [chunk["payload"] for chunk in sent if chunk["track"] == track]
        path = server.directory / f"{track.capitalize()}-{call_sid}.wav"
        check_recording(path, b"".join(map(base64.b64decode, payloads)))


def new_track():
    return Track(*ENCODINGS["audio/x-mulaw"], sample_rate=8000, ahead=0)


@pytest.mark.parametrize("drift", [-1e-4, 1e-4])
@pytest.mark.parametrize("loss", [0, 1e-4, 1e-2])
def test_a_call_of_four_hours_on_two_clocks(drift, loss):
    track, rng = new_track(), random.Random(11)
    for stamp in range(0, 4 * 3600_000, 400):
        # Every ten minutes, a hole of two seconds.
        if rng.random() >= loss and stamp % 600_000 >= 2000:
            early = rng.randrange(-100, 100)
            track.append(bytes(3200), stamp + early, int(stamp * (1 - drift)))
            # Once at its own time, the audio is within what a hole is, and the jitter.
            end = track.milliseconds(track.received + track.filled)
            assert abs(end - 400 - stamp) <= 300


@given(
    moments=st.lists(
        st.tuples(
            st.integers(-(10**6), 10**16) | st.integers(0, 10**4),
            st.integers(0, 10**4),
            st.binary(min_size=1, max_size=400),
        )
    )
)
def test_no_more_silence_than_time_has_passed(moments):
    track = new_track()
    elapsed = 0
    for stamp, passed, payload in moments:
        elapsed += passed
        track.append(payload, stamp, elapsed)
    assert track.filled <= 8 * (elapsed + elapsed // DRIFT + EARLY)
    added = [chunk for chunk in track.chunks if set(chunk) == {0xFF}]
    assert sum(map(len, track.chunks)) == track.received + track.filled
    assert track.filled <= sum(map(len, added))
