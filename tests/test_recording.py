"""From a stream to its WAV files, and what the log says of it."""

import random

import pytest
from checks import check_recording, check_saved, record, talk
from stream import Client, media, recording, start, stop

RNG = random.Random(1)
AUDIO = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(6050)}
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
def test_each_track_has_a_file_when_the_stream_is_closed(server, call_sid, audio):
    record(server, call_sid, audio)
    check_tracks(server, call_sid, audio)


def test_two_streams_of_a_call_record_a_track_each(server, call_sid):
    with Client(server) as inbound, Client(server) as outbound:
        inbound.send(start(call_sid, ["inbound"]))
        outbound.send(start(call_sid, ["outbound"]))
        inbound.send(INBOUND, stop())
        outbound.send(media("outbound", AUDIO["outbound"], 0), stop())
        assert inbound.wait_closed() == outbound.wait_closed() == (1000, "")
    check_tracks(server, call_sid, AUDIO)


def media_format(encoding, sample_rate, **channels):
    return {"encoding": encoding, "sampleRate": sample_rate, **channels}


FORMATS = [("audio/x-mulaw", 8000, b"\xff", "mu-law, 8 kHz")]
FORMATS += [("AUDIO/X-MULAW", 48000, b"\xff", "mu-law, 48 kHz")]
FORMATS += [("audio/x-alaw", 8000, b"\xd5", "A-law, 8 kHz")]
FORMATS += [("audio/x-L16", 16000, b"\0\0", "L16, 16 kHz")]
FORMATS += [("audio/x-l16", 24000, b"\0\0", "L16, 24 kHz")]
FORMATS += [("audio/x-l16", 11025, b"\0\0", "L16, 11.025 kHz")]


@pytest.mark.parametrize(("encoding", "sample_rate", "silence", "words"), FORMATS)
def test_media_formats(server, call_sid, encoding, sample_rate, silence, words):
    # A pause of less than 2 s need not be waited for.
    pause = "outbound", 0.1, 1
    record(server, call_sid, AUDIO, media_format(encoding, sample_rate), pause=pause)
    second = sample_rate * len(silence)  # bytes
    said, place = AUDIO["outbound"], second // 10
    paused = said[:place] + silence * sample_rate + said[place:]
    for track, data in {**AUDIO, "outbound": paused}.items():
        path = recording(server.directory, track, call_sid)
        check_recording(path, data, encoding, sample_rate)
    lines = log_of(server, call_sid)
    assert lines == [
        f"{call_sid}: both tracks, {words}\n",
        f"Saved Inbound-{call_sid}.wav, {8000 / second:.1f} s\n",
        f"Saved Outbound-{call_sid}.wav, {6050 / second + 1:.1f} s\n",
    ]


LACKING = [('"callSid": null', '"sid": 1'), ('"callSid": null', '"callSid": ""')]
LACKING += [('"mediaFormat": null', '"format": {}')]


@pytest.mark.parametrize(("null", "instead"), LACKING)
def test_what_start_may_lack(server, call_sid, null, instead):
    """Without callSid, the streamSid is taken; without mediaFormat, it is mu-law."""
    message = start(None, media_format=None, streamSid=call_sid).replace(null, instead)
    talk(server, message, INBOUND, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


RATES = 7999, 48001, -8000, "8000", 8000.5, True, None
REFUSED = [media_format("audio/x-mulaw", rate) for rate in RATES]
REFUSED += [media_format(encoding, 8000) for encoding in ("audio/opus", "", None)]
REFUSED += [media_format("audio/x-mulaw", 8000, channels=count) for count in (2, None)]
REFUSED += [{}, [], "audio/x-mulaw"]


@pytest.mark.parametrize("refused", REFUSED, ids=str)
def test_a_format_that_would_get_a_wrong_header_is_refused(server, call_sid, refused):
    code, reason = talk(server, start(call_sid, media_format=refused), INBOUND)
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


NO_TRACKS = (None, 5, [], {}, ["sideways\n" * 100] * 50)
PARAMETERS = [
    ({"customer": "M\u00fcller", "order": "42"}, ", customer=M\u00fcller, order=42"),
    ({"a\nb": "\x1b[2J\u202e\x7f\x9b"}, r", a\nb=\x1b[2J\u202e\x7f\x9b"),
    ({"a": "b" * 9999}, ", a=" + "b" * 94),
    (["\n"], ""),
]
STARTS = [({"tracks": none}, "no tracks, mu-law, 8 kHz") for none in NO_TRACKS]
for parameters, words in PARAMETERS:
    STARTS.append(({"customParameters": parameters}, f"inbound, mu-law, 8 kHz{words}"))


@pytest.mark.parametrize(("fields", "words"), STARTS, ids=range(len(STARTS)))
def test_the_log_has_what_start_says(server, call_sid, fields, words):
    assert talk(server, start(call_sid, **fields), stop()) == (1000, "")
    assert log_of(server, call_sid)[0] == f"{call_sid}: {words}\n"
