"""A message that makes no sense costs only itself; those of the references are taken."""

import json
import random
import uuid

import pytest
from checks import check_saved, check_wav, exchange
from hypothesis import given
from hypothesis import strategies as st
from recorder import Client
from signalwire import CONNECTED, MULAW, media, recording_path, start, stop

CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


def media_with(field, *values):
    """Return messages that have these `values` in a field of `media`."""
    usual = {"track": "inbound", "payload": "QUJD"}
    bodies = [usual | {field: value} for value in values]
    return [json.dumps({"event": "media", "media": body}) for body in bodies]


ALPHABETS = "QU JD", "QUJD\n", "QU-_", "QUJD=QUJD"  # not the one of base64
NONSENSE = {  # messages, and what the log says of each
    "no JSON": (["", "?"], "JSONDecodeError"),
    "no UTF-8": ([b"\xff\xfe"], "UnicodeDecodeError"),
    "a list or null": (["[]", "null"], "TypeError"),
    "a number with too many digits": (["1" * 5000], "ValueError"),
    "nested too deep": (["[" * 60_000, '{"event":' * 7000], "RecursionError"),
    "no event": (["{}"], "KeyError('event')"),
    "a second start": ([start("x"), '{"event":"start","start":5}'], "a second start')"),
    "no media": (['{"event":"media"}'], "KeyError('media')"),
    "media is a list": (['{"event":"media","media":[]}'], "TypeError"),
    "media is text": (['{"event":"media","media":"payload"}'], "TypeError"),
    "an unknown track": (media_with("track", "sideways"), "KeyError('sideways')"),
    "a long name of a track": (media_with("track", "s" * 99_999), "KeyError('ssss"),
    "no track": (media_with("track", None), "KeyError(None)"),
    "a track that is no text": (media_with("track", ["inbound"], {}), "TypeError"),
    "no text as payload": (media_with("payload", None, 5, ["QUJD"]), "TypeError"),
    "a character is missing": (media_with("payload", "QUJ"), "Error("),
    "other characters": (media_with("payload", *ALPHABETS), "Error("),
    "not ASCII": (media_with("payload", "Q\u00e9JD"), "ValueError"),
}


@pytest.mark.parametrize(("messages", "error"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_costs_only_itself(server, call_sid, messages, error):
    for number, nonsense in enumerate(messages):
        name = f"{call_sid}-{number}"
        sent = start(name), nonsense, *MEDIA, nonsense, nonsense, stop()
        assert exchange(server, *sent) == (1000, "")
        check_saved(server, name, AUDIO)
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
    server.wait_for(f"WARNING {call_sid}: skipped b'", "UnicodeDecodeError")


def test_a_payload_that_ends_within_a_sample_costs_only_itself(server, call_sid):
    payloads = AUDIO[:640], AUDIO[640:1279], AUDIO[1280:1920]
    messages = [media("inbound", payload, 0) for payload in payloads]
    exchange(
        server, start(call_sid, (), MULAW | {"encoding": "L16"}), *messages, stop()
    )
    path = recording_path(server.directory, "inbound", call_sid)
    check_wav(path, payloads[0] + payloads[2], "L16")
    server.wait_for(f"{call_sid}: skipped b'", "('payload ends within a sample')")


def test_a_message_may_have_1_mib_but_a_longer_one_ends_the_stream(server, call_sid):
    audio = random.randbytes(780_000)
    message = media("inbound", audio, 0)
    messages = message.ljust(2**20), message.ljust(2**20 + 1)
    assert exchange(server, start(call_sid), *messages)[0] == 1009
    check_saved(server, call_sid, audio)


def test_nonsense_before_start(server, call_sid):
    nonsense = MEDIA[0], '{"event":"start","start":5}'
    exchange(server, *nonsense, start(call_sid), *MEDIA, stop())
    check_saved(server, call_sid, AUDIO)
    server.wait_for("WARNING unknown call: skipped b'", "('media before start')")


def test_other_events_and_what_follows_stop_are_ignored(server, call_sid):
    others = [
        '{"event":"dtmf","dtmf":{"digit":"1"}}',
        '{"event":"mark"}',
        '{"event":""}',
    ]
    during = start(call_sid), *others, *MEDIA, *others, stop()
    exchange(server, CONNECTED, *during, *MEDIA)
    check_saved(server, call_sid, AUDIO)
    assert server.lines_with("WARNING", call_sid) == []


# The examples of the references with shorter sids, and b"INBOUND!" or b"OUTBOUND" as audio:
# https://signalwire.com/docs/compatibility-api/cxml/reference/voice/stream
# https://www.twilio.com/docs/voice/media-streams/websocket-messages

SIGNALWIRE = """
{"event": "connected", "protocol": "Call", "version": "0.2.0"}
{"event": "start", "sequenceNumber": "1", "start": {"streamSid": "S", "accountSid": "A",
 "callSid": "CALL_SID", "tracks": ["inbound"], "customParameters": {}, "mediaFormat":
 {"encoding": "audio/x-L16", "sampleRate": 24000, "channels": 1}}}
{"event": "media", "sequenceNumber": "42", "media":
 {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "SU5CT1VORCE="}}
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
 "timestamp": "5", "payload": "T1VUQk9VTkQ="}, "streamSid": "S"}
{"event": "media", "sequenceNumber": "4", "media": {"track": "inbound", "chunk": "2",
 "timestamp": "5", "payload": "SU5CT1VORCE="}, "streamSid": "S"}
{"event": "dtmf", "streamSid": "S", "sequenceNumber": "5", "dtmf":
 {"track": "inbound_track", "digit": "1"}}
{"event": "mark", "sequenceNumber": "4", "streamSid": "S", "mark": {"name": "my label"}}
{"event": "stop", "sequenceNumber": "5", "stop":
 {"accountSid": "A", "callSid": "CALL_SID"}, "streamSid": "S"}
"""
PARAMETERS = "{'FirstName': 'Jane', 'LastName': 'Doe', 'RemoteParty': 'Bob'}"
REFERENCES = {
    "SignalWire": (SIGNALWIRE, ["inbound"], "audio/x-L16", 24000, "{}"),
    "Twilio": (TWILIO, ["inbound", "outbound"], "audio/x-mulaw", 8000, PARAMETERS),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_messages_of_the_reference(server, call_sid, reference):
    text, tracks, encoding, sample_rate, parameters = REFERENCES[reference]
    text = text.replace("CALL_SID", call_sid).replace("\n ", " ")
    assert exchange(server, *text.strip().split("\n")) == (1000, "")
    for track in tracks:
        audio = {"inbound": b"INBOUND!", "outbound": b"OUTBOUND"}[track]
        path = recording_path(server.directory, track, call_sid)
        check_wav(path, audio, encoding, sample_rate)
    server.wait_for(f"{call_sid}: started, ", f"'customParameters': {parameters}")
    assert server.lines_with("WARNING", call_sid) == []


text = st.text(max_size=20).filter(lambda event: event != "stop")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner, max_size=5),
    max_leaves=5,
)
not_text = values.filter(lambda value: not isinstance(value, str))
bad_media = values | st.fixed_dictionaries({"track": values, "payload": not_text})
events = st.sampled_from(["start", "media", "dtmf"]) | values
fields = {"media": bad_media, "start": values}
objects = st.fixed_dictionaries({"event": events}, optional=fields)
junk = (values | objects).map(json.dumps) | st.binary(max_size=100) | text


@given(messages=st.lists(junk, min_size=1, max_size=len(CHUNKS)))
def test_anything_between_good_messages(shared_server, messages):
    call_sid, mixed = str(uuid.uuid4()), []
    for message, good in zip(messages, MEDIA, strict=False):
        mixed += [message, good]
    assert exchange(shared_server, start(call_sid), *mixed, stop()) == (1000, "")
    check_saved(shared_server, call_sid, b"".join(CHUNKS[: len(messages)]))
