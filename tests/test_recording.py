"""From a stream to its WAV files."""

import asyncio
import random
import uuid

import pytest
from conftest import check_recording, open_stream, stream, wait_closed
from simulate_call import call, media, play, start, stop

AUDIO = {
    "inbound": random.Random(1).randbytes(8000),
    "outbound": random.Random(2).randbytes(6050),
}


def recordings(server, call_sid):
    """Return the names of the call's files, without the callSid."""
    paths = server.directory.glob(f"*{call_sid}*")
    return sorted(path.name.replace(call_sid, "") for path in paths)


def check_tracks(server, call_sid, audio):
    """Assert that the call has a file for each track in `audio`, and no more."""
    names = [f"{track.capitalize()}-.wav" for track in audio]
    assert recordings(server, call_sid) == sorted(names)
    for track, data in audio.items():
        path = server.directory / f"{track.capitalize()}-{call_sid}.wav"
        check_recording(path, data)


@pytest.mark.parametrize("tracks", [["inbound"], ["outbound"], ["inbound", "outbound"]])
def test_each_track_that_is_streamed_gets_a_file(server, call_sid, tracks):
    audio = {track: AUDIO[track] for track in tracks}
    stream(server, call_sid, audio)
    check_tracks(server, call_sid, audio)


def test_stop_closes_the_connection_with_the_file_saved(server, call_sid):
    with open_stream(server, call_sid) as websocket:
        websocket.send(media("inbound", AUDIO["inbound"], 0))
        websocket.send(stop())
        assert wait_closed(websocket) == (1000, "")
        check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


def test_two_streams_of_a_call_record_a_track_each(server, call_sid):
    with (
        open_stream(server, call_sid, ["inbound"]) as inbound,
        open_stream(server, call_sid, ["outbound"]) as outbound,
    ):
        inbound.send(media("inbound", AUDIO["inbound"], 0))
        outbound.send(media("outbound", AUDIO["outbound"], 0))
        for websocket in inbound, outbound:
            websocket.send(stop())
            assert wait_closed(websocket) == (1000, "")
    check_tracks(server, call_sid, AUDIO)


def test_a_track_without_audio_gets_no_file(server, call_sid):
    with open_stream(server, call_sid, AUDIO) as websocket:
        websocket.send(media("inbound", b"", 0))
        websocket.send(stop())
        wait_closed(websocket)
    assert recordings(server, call_sid) == []
    assert not any("WARNING" in x for x in server.lines if call_sid in x)


def test_an_odd_number_of_bytes(server, call_sid):
    stream(server, call_sid, {"inbound": AUDIO["inbound"][:333]})
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"][:333]})


def test_fifty_two_track_calls_at_once(server):
    calls = {
        str(uuid.uuid4()): {t: random.randbytes(8000) for t in AUDIO} for _ in range(50)
    }

    async def play_all():
        await asyncio.gather(
            *(
                play(server.url, call(sid, audio), fast=True)
                for sid, audio in calls.items()
            )
        )

    asyncio.run(play_all())
    for call_sid, audio in calls.items():
        check_tracks(server, call_sid, audio)


def media_format(encoding, sample_rate, channels=1):
    return {"encoding": encoding, "sampleRate": sample_rate, "channels": channels}


@pytest.mark.parametrize(
    ("encoding", "sample_rate"),
    [
        ("audio/x-mulaw", 8000),
        ("AUDIO/X-MULAW", 8000),
        ("audio/x-alaw", 8000),
        ("audio/x-L16", 16000),
        ("audio/x-L16", 24000),
        ("audio/x-l16", 24000),
    ],
)
def test_media_formats(server, call_sid, encoding, sample_rate):
    stream(server, call_sid, AUDIO, media_format(encoding, sample_rate))
    for track, data in AUDIO.items():
        path = server.directory / f"{track.capitalize()}-{call_sid}.wav"
        check_recording(path, data, encoding, sample_rate)
    rate = sample_rate * (2 if "16" in encoding else 1)
    server.wait_for("Saved", f"Inbound-{call_sid}.wav", f"{8000 / rate:.1f} s")


@pytest.mark.parametrize("absent", [{}, {"mediaFormat": None}])
def test_without_a_media_format_it_is_mulaw(server, call_sid, absent):
    message = start(call_sid, ["inbound"], **absent)
    if not absent:
        message = message.replace('"mediaFormat"', '"format"')
    with server.connect() as websocket:
        websocket.send(message)
        websocket.send(media("inbound", AUDIO["inbound"], 0))
        websocket.send(stop())
        wait_closed(websocket)
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


@pytest.mark.parametrize(
    "refused",
    [
        media_format("audio/opus", 48000),
        media_format("", 8000),
        media_format(None, 8000),
        media_format("audio/x-mulaw", 0),
        media_format("audio/x-mulaw", -8000),
        media_format("audio/x-mulaw", "8000"),
        media_format("audio/x-mulaw", 8000.5),
        media_format("audio/x-mulaw", True),
        media_format("audio/x-mulaw", None),
        media_format("audio/x-L16", 10**12),
        media_format("audio/x-L16", 16000, channels=2),
        media_format("audio/x-L16", 16000, channels=None),
        {},
        [],
        "audio/x-mulaw",
    ],
)
def test_a_format_that_would_get_a_wrong_header_is_refused(server, call_sid, refused):
    before = len(server.lines)
    with open_stream(server, call_sid, media_format=refused) as websocket:
        code, reason = wait_closed(websocket)
    assert code == 1003
    assert "audio/x-mulaw" in reason
    server.wait_for(
        "Refused", "audio/x-mulaw, audio/x-alaw, audio/x-l16", repr(refused)
    )
    assert len(server.lines) == before + 1
    assert recordings(server, call_sid) == []


def test_events_that_are_not_for_a_recorder_are_passed_over(server, call_sid):
    others = [
        '{"event":"dtmf","dtmf":{"digit":"1"}}',
        '{"event":"mark"}',
        '{"event":""}',
    ]
    with open_stream(server, call_sid) as websocket:
        for message in [
            *others,
            media("inbound", AUDIO["inbound"], 0),
            *others,
            stop(),
        ]:
            websocket.send(message)
        wait_closed(websocket)
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})
    assert not any("WARNING" in x for x in server.lines if call_sid in x)


def test_the_log_has_a_line_for_the_start_and_one_for_each_file(server, call_sid):
    stream(server, call_sid, AUDIO)
    server.wait_for("Saved", f"Outbound-{call_sid}.wav", "0.8 s")
    lines = [line for line in server.lines if call_sid in line]
    assert len(lines) == 3
    assert "['inbound', 'outbound'] started, audio/x-mulaw, 8000 Hz" in lines[0]
    assert "Saved" in lines[1] and f"Inbound-{call_sid}.wav, 1.0 s" in lines[1]


def test_a_long_list_of_tracks_is_cut_in_the_log(server, call_sid):
    with open_stream(server, call_sid, ["inbound\n" * 100] * 50) as websocket:
        websocket.send(stop())
        wait_closed(websocket)
    assert len(server.wait_for(call_sid, "started")) < 200
