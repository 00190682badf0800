"""From a stream to its WAV files, and what the log says of it."""

import json
import random

import pytest
from checks import check_saved, check_wav, exchange, names_in, play_call
from recorder import Client
from signalwire import media, recording_path, sample_width, start, stop

RNG = random.Random(1)
AUDIO = {"inbound": RNG.randbytes(8000), "outbound": RNG.randbytes(6050)}
INBOUND = media("inbound", AUDIO["inbound"], 0)


def check_tracks(server, call_sid, audio):
    """Check that the call has a file for each track in `audio`, and no others."""
    for track, data in audio.items():
        check_saved(server, call_sid, data, track)
    names = {recording_path(server.directory, track, call_sid).name for track in audio}
    assert {path.name for path in server.directory.glob(f"*{call_sid}*")} == names


# The two tracks


TRACKS_OF_CALLS = {
    "inbound only": {"inbound": AUDIO["inbound"]},
    "outbound only": {"outbound": AUDIO["outbound"]},
    "both": AUDIO,
    "an odd number of bytes": {"inbound": AUDIO["inbound"][:333]},
}


@pytest.mark.parametrize("audio", TRACKS_OF_CALLS.values(), ids=TRACKS_OF_CALLS)
def test_each_track_is_saved_when_the_stream_stops(server, call_sid, audio):
    play_call(server, call_sid, audio)
    check_tracks(server, call_sid, audio)


def test_two_streams_of_a_call_record_one_track_each(server, call_sid):
    with Client(server) as inbound, Client(server) as outbound:
        inbound.send(start(call_sid, ["inbound"]))
        outbound.send(start(call_sid, ["outbound"]))
        inbound.send(INBOUND, stop())
        outbound.send(media("outbound", AUDIO["outbound"], 0), stop())
        assert inbound.wait_closed() == (1000, "")
        assert outbound.wait_closed() == (1000, "")
    check_tracks(server, call_sid, AUDIO)


def test_a_track_without_audio_gets_a_line_but_no_file(server, call_sid):
    exchange(server, start(call_sid), media("outbound", b"", 0), stop())
    server.wait_for(f"INFO No Inbound-{call_sid}.wav: no audio came")
    server.wait_for(f"INFO No Outbound-{call_sid}.wav: no audio came")
    check_tracks(server, call_sid, {})


def test_nothing_is_ever_sent_to_the_caller(server, call_sid):
    with Client(server) as client:
        client.send(start(call_sid), INBOUND, '{"event": "mark", "mark": {}}')
        client.wait_received()  # A message would come before the pong, and be an event.
        client.send(stop())
        client.protocol.events_received()
        events = []
        while not client.protocol.close_rcvd:
            events += client.read()
    assert [event.opcode.name for event in events] == ["CLOSE"]


# The formats

MULAW_NAMES = ["audio/x-mulaw", "AUDIO/X-MULAW", "audio/mulaw", "x-mulaw", "mulaw"]
MULAW_NAMES += ["audio/PCMU", "audio/x-pcmu", "PCMU"]
ALAW_NAMES = ["audio/x-alaw", "audio/alaw", "x-alaw", "alaw"]
ALAW_NAMES += ["audio/PCMA", "audio/x-pcma", "PCMA"]
L16_NAMES = ["audio/x-L16", "audio/x-l16", "audio/L16", "L16"]
FORMATS = [(name, 8000, b"\xff", "mu-law, 8000 Hz") for name in MULAW_NAMES]
FORMATS += [(name, 8000, b"\xd5", "A-law, 8000 Hz") for name in ALAW_NAMES]
FORMATS += [(name, 16000, b"\0\0", "L16, 16000 Hz") for name in L16_NAMES]
FORMATS += [("audio/x-L16", 24000, b"\0\0", "L16, 24000 Hz")]
FORMATS += [("audio/x-mulaw", 48000, b"\xff", "mu-law, 48000 Hz")]


@pytest.mark.parametrize(("encoding", "sample_rate", "silence", "words"), FORMATS)
def test_formats(server, call_sid, encoding, sample_rate, silence, words):
    media_format = {"encoding": encoding, "sampleRate": sample_rate, "channels": 1}
    # A pause of less than 2 s need not be waited for.
    play_call(server, call_sid, AUDIO, media_format, pause=("outbound", 0.1, 1))
    second = sample_rate * sample_width(media_format)  # bytes
    said, place = AUDIO["outbound"], second // 10
    with_pause = said[:place] + silence * sample_rate + said[place:]
    inbound = recording_path(server.directory, "inbound", call_sid)
    outbound = recording_path(server.directory, "outbound", call_sid)
    check_wav(inbound, AUDIO["inbound"], encoding, sample_rate)
    check_wav(outbound, with_pause, encoding, sample_rate)
    server.wait_for(f"INFO {call_sid}: started, {words}, ")
    seconds = len(AUDIO["inbound"]) / second
    server.wait_for(f"INFO Saved Inbound-{call_sid}.wav, {seconds:.1f} s\n")
    text = f"{len(with_pause) / second:.1f} s (no audio came for 1.0 s of it)\n"
    server.wait_for(f"INFO Saved Outbound-{call_sid}.wav, {text}")


def check_refused(server, message, code, reason):
    """Check that a stream that begins with `message` is closed, and leaves no file."""
    before = names_in(server.directory)
    assert exchange(server, message, INBOUND) == (code, reason)
    line = server.wait_for(f"WARNING Refused a stream: {reason}, not ")
    assert len(line) < 800
    assert names_in(server.directory) == before
    return line


RATES = [7999, 48001, -8000, "8000", 8000.5, True, None]
REFUSED = [{"encoding": "audio/x-mulaw", "sampleRate": rate} for rate in RATES]
REFUSED += [{"encoding": "audio/opus", "sampleRate": 8000}]
REFUSED += [
    {"encoding": "", "sampleRate": 8000},
    {"encoding": None, "sampleRate": 8000},
]
REFUSED += [{"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2}]
REFUSED += [{"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": None}]
REFUSED += [{}, [], "audio/x-mulaw"]


@pytest.mark.parametrize("media_format", REFUSED, ids=str)
def test_other_formats_are_refused(server, call_sid, media_format):
    names = "mulaw, pcmu, alaw, pcma, l16"
    reason = f"mediaFormat must be {names}, 8 to 48 kHz, 1 channel"
    line = check_refused(server, start(call_sid, (), media_format), 1003, reason)
    assert json.dumps(media_format) in line


# The callSid

BAD_SIDS = [5, ["call"], {"call": 1}, "../call", "/tmp/call", "a\\b", "a.wav", "C:call"]
BAD_SIDS += ["a b", "call\n", "\x00", "\x1b[2J", "\u00e9", "\u0663", "\ud800", "a" * 65]


@pytest.mark.parametrize("sid", BAD_SIDS, ids=ascii)
@pytest.mark.parametrize("field", ["callSid", "streamSid"])
def test_a_sid_that_cannot_be_in_a_file_name_is_refused(server, field, sid):
    reason = "callSid must be 1 to 64 letters, digits, - or _"
    check_refused(server, start(None, **{field: sid}), 1008, reason)


@pytest.mark.parametrize("body", ["missing", "null", "[]", "{}"])
def test_a_start_without_a_sid_is_refused(server, body):
    message = '{"event": "start"}'
    if body != "missing":
        message = f'{{"event": "start", "start": {body}}}'
    assert exchange(server, message)[0] == 1008


def test_a_sid_may_have_all_that_is_allowed(server):
    call_sid = "azAZ09_-" * 8
    play_call(server, call_sid, AUDIO)
    check_tracks(server, call_sid, AUDIO)


@pytest.mark.parametrize("lacking", ["null", "an empty string", "missing"])
def test_without_a_callsid_the_streamsid_is_used(server, call_sid, lacking):
    data = json.loads(start(None, streamSid=call_sid))
    if lacking == "an empty string":
        data["start"]["callSid"] = ""
    elif lacking == "missing":
        del data["start"]["callSid"]
    exchange(server, json.dumps(data), INBOUND, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


@pytest.mark.parametrize("lacking", ["null", "missing"])
def test_without_a_format_it_is_mulaw(server, call_sid, lacking):
    data = json.loads(start(call_sid, media_format=None))
    if lacking == "missing":
        del data["start"]["mediaFormat"]
    exchange(server, json.dumps(data), INBOUND, stop())
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})


# What the log says of a call

FROM_XML = {  # what an XML bin can fill in, and what a user may add
    "from": "sip:customer-service@example.sip.signalwire.com",
    "to": "+15557654321",
    "direction": "outbound-dial",
    "callSid": "5f3e81a6-5b7a-4b0e-a0a3-3f1e0d2c4b5a",
    "parentCallSid": "0f3e81a6-5b7a-4b0e-a0a3-3f1e0d2c4b5a",
    "customer": "M\u00fcller & S\u00f6hne",
}
PARAMETERS = {
    "a usual set": (FROM_XML, str(FROM_XML)),
    "control characters": (
        {"a\nb": "\x1b[2J\u202e\x9b"},
        r"{'a\nb': '\x1b[2J\u202e\x9b'}",
    ),
    "no object": (["\n"], r"['\n']"),
    "none": (None, "None"),
}


@pytest.mark.parametrize(("parameters", "words"), PARAMETERS.values(), ids=PARAMETERS)
def test_the_log_has_the_parameters_of_a_call(server, call_sid, parameters, words):
    exchange(server, start(call_sid, customParameters=parameters), stop())
    line = server.wait_for(f"INFO {call_sid}: started, mu-law, 8000 Hz, ")
    assert f"'tracks': ['inbound'], 'customParameters': {words}" in line


def nested(depth):
    return json.loads('{"a":' * depth + "1" + "}" * depth)


LARGE = {
    "text": "b" * 60_000,
    "tracks": ["sideways\n" * 100] * 50,
    "nested": nested(300),
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_the_log_has_not_all_that_a_stranger_sends(server, call_sid, value):
    message = start(call_sid, tracks=value, customParameters={"a": value})
    assert exchange(server, message, INBOUND, stop()) == (1000, "")
    check_tracks(server, call_sid, {"inbound": AUDIO["inbound"]})
    assert all(len(line) < 800 for line in server.lines_with(call_sid))
