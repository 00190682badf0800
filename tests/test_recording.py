"""From a stream to its WAV files, and what the log says of it."""

import json
import random

import pytest
from checks import check_saved, check_wav, exchange, names_in, play_call
from recorder import Client
from signalwire import MULAW, media, message, recording_path, start, stop

RNG = random.Random(1)
AUDIO = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(6051)}
INBOUND = {"inbound": AUDIO["inbound"]}
MEDIA = {track: media(track, audio, 0) for track, audio in AUDIO.items()}


def check_tracks(server, call_sid, audio):
    """Check that the call has a file for each track in `audio`, and no others."""
    for track, data in audio.items():
        check_saved(server, call_sid, data, track)
    assert len(list(server.directory.glob(f"*{call_sid}*"))) == len(audio)


@pytest.mark.parametrize("tracks", ["inbound", "outbound", "inbound and outbound"])
def test_each_track_is_saved_when_the_stream_stops(server, call_sid, tracks):
    audio = {track: AUDIO[track] for track in tracks.split(" and ")}
    play_call(server, call_sid, audio)
    check_tracks(server, call_sid, audio)


def test_two_streams_of_a_call_record_one_track_each(server, call_sid):
    with Client(server) as inbound, Client(server) as outbound:
        inbound.send(start(call_sid, ["inbound"]), MEDIA["inbound"])
        outbound.send(start(call_sid, ["outbound"]), MEDIA["outbound"], stop())
        inbound.send(stop())
        assert inbound.wait_closed() == outbound.wait_closed() == (1000, "")
    check_tracks(server, call_sid, AUDIO)


def test_a_track_without_audio_gets_a_line_but_no_file(server, call_sid):
    exchange(server, start(call_sid), media("outbound", b"", 0), stop())
    server.wait_for(f"INFO No Inbound-{call_sid}.wav: no audio came")
    server.wait_for(f"INFO No Outbound-{call_sid}.wav: no audio came")
    check_tracks(server, call_sid, {})


def test_nothing_is_ever_sent_to_the_caller(server, call_sid):
    mark, events = '{"event": "mark", "mark": {}}', []
    with Client(server) as client:
        client.send(start(call_sid), MEDIA["inbound"], mark, stop())
        while not client.protocol.close_rcvd:
            events += client.read()
    assert [event.opcode.name for event in events] == ["CLOSE"]


FORMATS = [  # name in the log, Hz, a sample of silence, names in mediaFormat
    ("mu-law", 8000, b"\xff", "audio/x-mulaw AUDIO/X-MULAW mulaw PCMU audio/x-pcmu"),
    ("mu-law", 48000, b"\xff", "audio/x-mulaw"),
    ("A-law", 8000, b"\xd5", "audio/x-alaw audio/alaw x-alaw alaw PCMA audio/PCMA"),
    ("L16", 16000, b"\0\0", "audio/x-L16 audio/x-l16 audio/L16 L16"),
    ("L16", 24000, b"\0\0", "audio/x-L16"),
]
NAMES = [(name, *row) for *row, names in FORMATS for name in names.split()]


@pytest.mark.parametrize(("encoding", "words", "rate", "silence"), NAMES)
def test_each_name_of_an_encoding_is_recorded(
    server, call_sid, encoding, words, rate, silence
):
    media_format = {"encoding": encoding, "sampleRate": rate}
    # A pause of less than 2 s need not be waited for.
    play_call(server, call_sid, INBOUND, media_format, pause=("inbound", 0.1, 1))
    audio, second = AUDIO["inbound"], rate * len(silence)  # bytes
    with_pause = audio[: second // 10] + silence * rate + audio[second // 10 :]
    path = recording_path(server.directory, "inbound", call_sid)
    check_wav(path, with_pause, encoding, rate)
    server.wait_for(f"INFO {call_sid}: started, {words}, {rate} Hz, ")
    length = f"{len(with_pause) / second:.1f} s (no audio came for 1.0 s of it)"
    server.wait_for(f"INFO Saved {path.name}, {length}\n")


WHY = {
    1003: "mediaFormat must be mulaw, pcmu, alaw, pcma, l16, 8 to 48 kHz, 1 channel",
    1008: "callSid must be 1 to 64 letters, digits, - or _",
}
OTHERS = [MULAW | {"sampleRate": x} for x in (7999, 48001, "8000", 8000.5, True, None)]
OTHERS += [MULAW | {"encoding": x} for x in ("audio/opus", "", None)]
OTHERS += [MULAW | {"channels": x} for x in (2, None)]
OTHERS += [{}, [], "audio/x-mulaw"]
SIDS = [5, ["call"], {"call": 1}, "../call", "/tmp/call", "a\\b", "a.wav", "C:call"]
SIDS += ["a b", "call\n", "\x00", "\x1b[2J", "\u00e9", "\u0663", "\ud800", "a" * 65]
REFUSED = [(1003, x, {"start": {"callSid": "a", "mediaFormat": x}}) for x in OTHERS]
REFUSED += [(1008, x, {"start": {"callSid": x}}) for x in SIDS]
REFUSED += [(1008, x, {"start": {"streamSid": x}}) for x in SIDS]
REFUSED += [(1008, None, {"start": x}) for x in (None, [], {})] + [(1008, None, {})]


@pytest.mark.parametrize(("code", "value", "fields"), REFUSED, ids=ascii)
def test_a_stream_without_a_safe_sid_or_a_format_is_refused(
    server, code, value, fields
):
    before, text = names_in(server.directory), message("start", 1, **fields)
    assert exchange(server, text, MEDIA["inbound"], stop()) == (code, WHY[code])
    server.wait_for(f"WARNING Refused a stream: {WHY[code]}, not {value!r}\n")
    assert names_in(server.directory) == before


LACKING = [("callSid", None), ("callSid", ""), ("callSid", "missing")]
LACKING += [("mediaFormat", None), ("mediaFormat", "missing")]


@pytest.mark.parametrize(("field", "value"), LACKING)
def test_the_streamsid_or_mulaw_replaces_what_is_lacking(
    server, call_sid, field, value
):
    sid = call_sid + "_azAZ09" * 4  # the longest one, and all that one may have
    data = json.loads(start(sid, streamSid=sid, **{field: value}))
    if value == "missing":
        del data["start"][field]
    exchange(server, json.dumps(data), MEDIA["inbound"], stop())
    check_tracks(server, sid, INBOUND)


KEYS = ["from", "to", "direction", "callSid", "parentCallSid", "customer"]
VALUES = {
    "a usual set": dict.fromkeys(KEYS, "sip:M\u00fcller@example.sip.signalwire.com"),
    "control characters": {"a\nb": "\x1b[2J\u202e\x9b"},
    "a long text": "b" * 60_000,
    "a long list": ["sideways\n" * 100] * 50,
    "nested": json.loads('{"a":' * 300 + "1" + "}" * 300),
}


@pytest.mark.parametrize("field", ["tracks", "customParameters"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_log_has_the_beginning_of_what_start_says(server, call_sid, field, value):
    exchange(server, start(call_sid, **{field: value}), MEDIA["inbound"], stop())
    check_tracks(server, call_sid, INBOUND)
    said = {"tracks": ["inbound"], "customParameters": None} | {field: value}
    server.wait_for(f"INFO {call_sid}: started, mu-law, 8000 Hz, {str(said)[:500]}\n")


def test_a_start_that_is_nested_too_deep_for_the_log_costs_at_most_its_line(server):
    for depth in range(970, 990):  # Python 3.11 parses some that it cannot print.
        nested = '{"event":"start","start":{"callSid":"deep","tracks":'
        nested += "[" * depth + "]" * depth + "}}"
        assert exchange(server, nested, stop())[0] == 1000
    play_call(server, "after", INBOUND)
    check_saved(server, "after", AUDIO["inbound"])
    assert server.lines_with("Traceback") == []
