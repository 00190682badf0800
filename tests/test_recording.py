"""From a stream to its WAV files, and what the log says of it."""

import random

import pytest
from checks import check_recording, check_saved, record, talk
from stream import Client, connected, media, recording, start, stop

AUDIO = {
    "inbound": random.Random(1).randbytes(8000),
    "outbound": random.Random(2).randbytes(6050),
}
INBOUND = media("inbound", AUDIO["inbound"], 0)


def check_tracks(server, call_sid, audio):
    """Assert that the call has a file for each track in `audio`, and no more."""
    names = {f"{track.capitalize()}-{call_sid}.wav" for track in audio}
    assert {path.name for path in server.directory.glob(f"*{call_sid}*")} == names
    for track, data in audio.items():
        check_saved(server, call_sid, data, track)


def log_of(server, call_sid):
    """Return the lines about a call, without their time and level, once it has ended."""
    server.wait_for(f"Outbound-{call_sid}.wav")
    return [line.split(" ", 2)[2] for line in server.lines if call_sid in line]


ODD = {"inbound": AUDIO["inbound"][:333]}
EACH = [{track: audio} for track, audio in AUDIO.items()]


@pytest.mark.parametrize("audio", [*EACH, AUDIO, ODD], ids=[*AUDIO, "both", "odd"])
def test_each_track_that_is_streamed_gets_a_file(server, call_sid, audio):
    record(server, call_sid, audio)
    check_tracks(server, call_sid, audio)


def test_stop_closes_the_connection_with_the_file_saved(server, call_sid):
    with Client(server) as client:
        client.send(connected(), start(call_sid), INBOUND, stop())
        assert client.wait_closed() == (1000, "")
        assert recording(server.directory, "inbound", call_sid).exists()


def test_two_streams_of_a_call_record_a_track_each(server, call_sid):
    with Client(server) as inbound, Client(server) as outbound:
        inbound.send(start(call_sid, ["inbound"]))
        outbound.send(start(call_sid, ["outbound"]))
        inbound.send(INBOUND, stop())
        outbound.send(media("outbound", AUDIO["outbound"], 0), stop())
        assert inbound.wait_closed() == outbound.wait_closed() == (1000, "")
    check_tracks(server, call_sid, AUDIO)


def media_format(encoding, sample_rate, channels=1):
    return {"encoding": encoding, "sampleRate": sample_rate, "channels": channels}


@pytest.mark.parametrize(
    ("encoding", "sample_rate", "words"),
    [
        ("audio/x-mulaw", 8000, "mu-law, 8 kHz"),
        ("AUDIO/X-MULAW", 8000, "mu-law, 8 kHz"),
        ("audio/x-alaw", 8000, "A-law, 8 kHz"),
        ("audio/x-L16", 16000, "L16, 16 kHz"),
        ("audio/x-l16", 24000, "L16, 24 kHz"),
        ("audio/x-l16", 11025, "L16, 11.025 kHz"),
    ],
)
def test_media_formats(server, call_sid, encoding, sample_rate, words):
    record(server, call_sid, AUDIO, media_format(encoding, sample_rate))
    for track, data in AUDIO.items():
        path = recording(server.directory, track, call_sid)
        check_recording(path, data, encoding, sample_rate)
    rate = sample_rate * (2 if "16" in encoding else 1)
    lines = log_of(server, call_sid)
    assert lines == [
        f"{call_sid}: both tracks, {words}\n",
        f"Saved Inbound-{call_sid}.wav, {8000 / rate:.1f} s\n",
        f"Saved Outbound-{call_sid}.wav, {6050 / rate:.1f} s\n",
    ]
    assert len(f"00:00:00 INFO {lines[0]}") <= 80 + ("11" in words)


@pytest.mark.parametrize("absent", ['"mediaFormat": null', '"format": {}'])
def test_without_a_media_format_it_is_mulaw(server, call_sid, absent):
    message = start(call_sid, media_format=None).replace('"mediaFormat": null', absent)
    talk(server, message, INBOUND, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


MULAW, L16 = "audio/x-mulaw", "audio/x-L16"
REFUSED = [media_format(MULAW, rate) for rate in (0, -8000, "8000", 8000.5, True, None)]
REFUSED += [media_format(encoding, 8000) for encoding in ("audio/opus", "", None)]
REFUSED += [media_format(L16, 10**12), media_format(L16, 16000, channels=2)]
REFUSED += [media_format(L16, 16000, channels=None), {}, [], "audio/x-mulaw"]


@pytest.mark.parametrize("refused", REFUSED, ids=str)
def test_a_format_that_would_get_a_wrong_header_is_refused(server, call_sid, refused):
    code, reason = talk(server, start(call_sid, media_format=refused))
    assert code == 1003 and "audio/x-mulaw" in reason
    encodings = "audio/x-mulaw, audio/x-alaw, audio/x-l16"
    server.wait_for("WARNING Refused", encodings, repr(refused))
    check_tracks(server, call_sid, {})


def test_events_that_are_not_for_a_recorder_are_passed_over(server, call_sid):
    dtmf = '{"event":"dtmf","dtmf":{"digit":"1"}}'
    others = [dtmf, '{"event":"mark"}', '{"event":""}']
    talk(server, start(call_sid), *others, INBOUND, *others, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})
    assert not any("WARNING" in x for x in server.lines if call_sid in x)


def test_a_track_without_audio_gets_no_file_but_a_line(server, call_sid):
    talk(server, start(call_sid), media("outbound", b"", 0), stop())
    check_tracks(server, call_sid, {})
    assert log_of(server, call_sid) == [
        f"{call_sid}: inbound, mu-law, 8 kHz\n",
        f"No Inbound-{call_sid}.wav: no audio\n",
        f"No Outbound-{call_sid}.wav: no audio\n",
    ]


def log_of_start(server, call_sid, **fields):
    assert talk(server, start(call_sid, **fields), stop()) == (1000, "")
    return log_of(server, call_sid)[0]


@pytest.mark.parametrize("tracks", [None, 5, [], {}, ["sideways\n" * 100] * 50])
def test_tracks_that_are_none(server, call_sid, tracks):
    line = log_of_start(server, call_sid, tracks=tracks)
    assert line == f"{call_sid}: no tracks, mu-law, 8 kHz\n"


GIVEN = [
    ({"customer": "M\u00fcller", "order": "42"}, ", customer=M\u00fcller, order=42"),
    ({"a\nb": "\x1b[2J\u202e\x7f\x9b"}, r", a\nb=\x1b[2J\u202e\x7f\x9b"),
    ({"a": "b" * 9999}, ", a=" + "b" * 80),
    (["\n"], ""),
]


@pytest.mark.parametrize(("parameters", "words"), GIVEN, ids=range(len(GIVEN)))
def test_the_log_has_the_custom_parameters(server, call_sid, parameters, words):
    line = log_of_start(server, call_sid, customParameters=parameters)
    assert line.startswith(f"{call_sid}: inbound, mu-law, 8 kHz{words}")
    assert len(line) < 200 and line[len(call_sid) :].count("\n") == 1


@pytest.mark.parametrize("absent", ['"callSid": null', '"sid": 1', '"callSid": ""'])
def test_a_start_without_call_sid_uses_its_stream_sid(server, call_sid, absent):
    message = start(None, streamSid=call_sid).replace('"callSid": null', absent)
    talk(server, message, INBOUND, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})
