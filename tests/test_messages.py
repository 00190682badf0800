"""Nonsense costs only itself, and the examples of the references are taken."""

import json
import uuid

import pytest
from checks import check_saved, check_wav, exchange
from hypothesis import given
from hypothesis import strategies as st
from recorder import Client
from signalwire import AUDIO, CHUNKS, MEDIA, media, message, recording_path, start, stop

L16 = {"encoding": "L16", "sampleRate": 8000}


def media_with(field, *values):
    """Return messages that have these `values` in a field of `media`."""
    usual = {"track": "inbound", "payload": "QUJDREVG"}
    return [message("media", 2, media=usual | {field: value}) for value in values]


NO_BASE64 = "QUJ", "QUJD REVG", "QUJDREVG\n", "QUJDREVG-_-_", "QUJD=REVG"
NONSENSE = {  # messages, and what the log says of each
    "no JSON": (["", "?"], "JSONDecodeError"),
    "no UTF-8": ([b"\xff\xfe"], "UnicodeDecodeError"),
    "no object": (["[]", "null"], "TypeError"),
    "no media object": ([message("media", 2, media=x) for x in ("", [])], "TypeError"),
    "a number with too many digits": (["1" * 5000], "ValueError"),
    "nested too deep": (["[" * 60_000, '{"event":' * 60_000], "RecursionError"),
    "no event": (["{}"], "KeyError('event')"),
    "a second start": ([start("x"), '{"event":"start","start":5}'], "a second start')"),
    "no media": (['{"event":"media"}'], "KeyError('media')"),
    "an unknown track": (media_with("track", "sideways", "s" * 99_999), "KeyError('s"),
    "no track": (media_with("track", None), "KeyError(None)"),
    "a track that is no text": (media_with("track", ["inbound"], {}), "TypeError"),
    "no text as payload": (media_with("payload", None, 5, ["QUJD"]), "TypeError"),
    "no base64": (media_with("payload", *NO_BASE64), "Error("),
    "not ASCII": (media_with("payload", "QUJDR\u00e9VG"), "ValueError("),
    "an odd number of bytes": (media_with("payload", "QUJD"), "ends within a sample')"),
}


@pytest.mark.parametrize(("messages", "error"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_costs_only_itself(server, call_sid, messages, error):
    for number, nonsense in enumerate(messages):
        name = f"{call_sid}-{number}"
        sent = nonsense, media("inbound", AUDIO, 0), nonsense, nonsense, stop()
        assert exchange(server, start(name, (), L16), *sent) == (1000, "")
        check_wav(recording_path(server.directory, "inbound", name), AUDIO, "L16")
        line = server.wait_for(f"WARNING {name}: skipped b'", error)
        assert len(line) < 900
        server.wait_for(f"WARNING {name}: skipped 3 messages in all\n")
        assert len(server.lines_with(f"{name}: skipped")) == 2


def test_a_text_frame_that_is_not_utf8_costs_only_itself(server, call_sid):
    with Client(server) as client:
        client.send(start(call_sid), *MEDIA[:25])
        client.protocol.send_text(b'{"event": "\xff"}')
        client.send(*MEDIA[25:], stop())
        assert client.wait_closed() == (1000, "")
    check_saved(server, call_sid, AUDIO)
    (line,) = server.lines_with("WARNING", call_sid)
    assert "skipped b'" in line and "UnicodeDecodeError" in line


def test_a_message_may_have_1_mib_but_a_longer_one_ends_the_stream(server, call_sid):
    text = media("inbound", AUDIO * 96, 0)
    messages = text.ljust(2**20), text.ljust(2**20 + 1)
    assert exchange(server, start(call_sid), *messages)[0] == 1009
    check_saved(server, call_sid, AUDIO * 96)


def test_what_is_not_between_start_and_stop_is_not_recorded(server, call_sid):
    before = MEDIA[0], '{"event":"start","start":5}'
    others = '{"event":"dtmf","digit":1}', '{"event":"mark"}', '{"event":""}'
    during = start(call_sid), *others, *MEDIA, *others, stop()
    exchange(server, *before, *others, *during, *MEDIA)
    check_saved(server, call_sid, AUDIO)
    server.wait_for("WARNING unknown call: skipped b'", "('media before start')")
    server.wait_for(f"WARNING {call_sid}: skipped 2 messages in all\n")
    assert len(server.lines_with("WARNING")) == 2


# The examples of the references, with shorter sids, and with the payload b"ABCDEF":
# https://signalwire.com/docs/compatibility-api/cxml/reference/voice/stream
# https://www.twilio.com/docs/voice/media-streams/websocket-messages
SIGNALWIRE = """
{"event": "connected", "protocol": "Call", "version": "0.2.0"}
{"event": "start", "sequenceNumber": "1", "start": {"streamSid": "S", "accountSid": "A",
 "callSid": "CALL_SID", "tracks": ["inbound"], "customParameters": {}, "mediaFormat":
 {"encoding": "audio/x-L16", "sampleRate": 24000, "channels": 1}}}
{"event": "media", "sequenceNumber": "42", "media":
 {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "QUJDREVG"}}
{"event": "dtmf", "sequenceNumber": "123", "streamSid": "S", "dtmf":
 {"digit": "5", "duration": 2000}}
{"event": "mark", "streamSid": "S", "mark": {"name": "my-custom-mark"}}
{"event": "stop", "sequenceNumber": "999"}
"""
TWILIO = """
{"event": "connected", "protocol": "Call", "version": "1.0.0"}
{"event": "start", "sequenceNumber": "1", "start": {"accountSid": "A", "streamSid": "S",
 "callSid": "CALL_SID", "tracks": ["inbound"], "mediaFormat":
 {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}, "customParameters":
 {"FirstName": "Jane", "LastName": "Doe", "RemoteParty": "Bob"}}, "streamSid": "S"}
{"event": "media", "sequenceNumber": "3", "media": {"track": "outbound", "chunk": "1",
 "timestamp": "5", "payload": "QUJDREVG"}, "streamSid": "S"}
{"event": "media", "sequenceNumber": "4", "media": {"track": "inbound", "chunk": "2",
 "timestamp": "5", "payload": "QUJDREVG"}, "streamSid": "S"}
{"event": "dtmf", "streamSid": "S", "sequenceNumber": "5", "dtmf":
 {"track": "inbound_track", "digit": "1"}}
{"event": "mark", "sequenceNumber": "4", "streamSid": "S", "mark": {"name": "my label"}}
{"event": "stop", "sequenceNumber": "5", "stop":
 {"accountSid": "A", "callSid": "CALL_SID"}, "streamSid": "S"}
"""
REFERENCES = {
    "SignalWire": (SIGNALWIRE, ["inbound"], "audio/x-L16", 24000),
    "Twilio": (TWILIO, ["inbound", "outbound"], "audio/x-mulaw", 8000),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_messages_of_the_reference(server, call_sid, reference):
    text, tracks, encoding, sample_rate = REFERENCES[reference]
    text = text.replace("CALL_SID", call_sid).replace("\n ", " ")
    assert exchange(server, *text.strip().split("\n")) == (1000, "")
    for track in tracks:
        path = recording_path(server.directory, track, call_sid)
        check_wav(path, b"ABCDEF", encoding, sample_rate)
    assert server.lines_with("WARNING", call_sid) == []


text = st.text(max_size=20).filter(lambda event: event != "stop")
no_text = st.none() | st.booleans() | st.integers() | st.floats()
plain = no_text | text
values = plain | st.lists(plain) | st.dictionaries(text, plain, max_size=5)
bad_media = values | st.fixed_dictionaries({"track": values, "payload": no_text})
events = st.sampled_from(["start", "media", "dtmf"]) | values
fields = {"media": bad_media, "start": values}
objects = st.fixed_dictionaries({"event": events}, optional=fields)
junk = (values | objects).map(json.dumps) | st.binary(max_size=100) | text


@given(messages=st.lists(junk, min_size=1, max_size=len(CHUNKS)))
def test_random_nonsense_costs_only_itself(shared_server, messages):
    call_sid, mixed = str(uuid.uuid4()), []
    for bad, good in zip(messages, MEDIA, strict=False):
        mixed += [bad, good]
    assert exchange(shared_server, start(call_sid), *mixed, stop()) == (1000, "")
    check_saved(shared_server, call_sid, b"".join(CHUNKS[: len(messages)]))
