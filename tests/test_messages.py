"""A message that makes no sense costs only itself; those of the references are taken."""

import base64
import json
import random
import uuid

import pytest
from checks import check_saved, check_wav, exchange
from hypothesis import given
from hypothesis import strategies as st
from recorder import Client
from signalwire import CONNECTED, media, recording_path, start, stop
from websockets.frames import Frame, Opcode

CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


def media_with(track="inbound", payload="QUJD", timestamp="0"):
    body = {"track": track, "payload": payload, "timestamp": timestamp}
    return json.dumps({"event": "media", "media": body})


NONSENSE = {  # and what the log says of it
    "nothing": ("", "JSONDecodeError"),
    "no JSON": ("?", "JSONDecodeError"),
    "no UTF-8": (b"\xff\xfe", "UnicodeDecodeError"),
    "a list": ("[]", "TypeError"),
    "null": ("null", "TypeError"),
    "a number with too many digits": ("1" * 5000, "ValueError"),
    "lists in lists": ("[" * 60_000, "RecursionError"),
    "objects in objects": ('{"event":' * 7000, "RecursionError"),
    "no event": ("{}", "KeyError('event')"),
    "a second start": (start("x"), "ValueError('a second start')"),
    "a start that is no object": ('{"event":"start","start":5}', "a second start"),
    "no media": ('{"event":"media"}', "KeyError('media')"),
    "media is a list": ('{"event":"media","media":[]}', "TypeError"),
    "media is text": ('{"event":"media","media":"payload"}', "TypeError"),
    "an unknown track": (media_with(track="sideways"), "KeyError('sideways')"),
    "a long name of a track": (media_with(track="s" * 99_999), "KeyError('ssss"),
    "no track": (media_with(track=None), "KeyError(None)"),
    "a list of tracks": (media_with(track=["inbound"]), "TypeError"),
    "an object as track": (media_with(track={}), "TypeError"),
    "no payload": (media_with(payload=None), "TypeError"),
    "a number as payload": (media_with(payload=5), "TypeError"),
    "a list of payloads": (media_with(payload=["QUJD"]), "TypeError"),
    "a character is missing": (media_with(payload="QUJ"), "Error("),
    "a space in base64": (media_with(payload="QU JD"), "Error("),
    "a line break in base64": (media_with(payload="QUJD\n"), "Error("),
    "base64 for urls": (media_with(payload="QU-_"), "Error("),
    "two base64 texts": (media_with(payload="QUJD=QUJD"), "Error("),
    "not ASCII": (media_with(payload="Q\u00e9JD"), "ValueError"),
}


@pytest.mark.parametrize(("nonsense", "error"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_costs_only_itself(server, call_sid, nonsense, error):
    messages = [start(call_sid), nonsense, *MEDIA, nonsense, nonsense, stop()]
    assert exchange(server, *messages) == (1000, "")
    check_saved(server, call_sid, AUDIO)
    line = server.wait_for(f"WARNING {call_sid}: skipped b'", error)
    assert len(line) < 900
    server.wait_for(f"WARNING {call_sid}: skipped 3 messages in all\n")
    assert len(server.lines_with(f"{call_sid}: skipped")) == 2


def test_a_text_frame_that_is_not_utf8_costs_only_itself(server, call_sid):
    frame = Frame(Opcode.TEXT, b'{"event": "\xff"}').serialize(mask=True)
    with Client(server) as client:
        client.send(start(call_sid), *MEDIA[:25])
        client.socket.sendall(frame)
        client.send(*MEDIA[25:], stop())
        assert client.wait_closed() == (1000, "")
    check_saved(server, call_sid, AUDIO)
    server.wait_for(f"WARNING {call_sid}: skipped b'", "UnicodeDecodeError")


def test_a_payload_that_ends_within_a_sample_costs_only_itself(server, call_sid):
    media_format = {"encoding": "audio/x-L16", "sampleRate": 16000, "channels": 1}
    short = media("inbound", AUDIO[:639], 20)
    whole = [media("inbound", AUDIO[640:1280], stamp) for stamp in (0, 40)]
    exchange(
        server, start(call_sid, (), media_format), whole[0], short, whole[1], stop()
    )
    path = server.directory / f"Inbound-{call_sid}.wav"
    assert path.read_bytes().endswith(AUDIO[640:1280] * 2)
    assert path.stat().st_size == 44 + 2 * 640
    server.wait_for(
        f"{call_sid}: skipped b'", "ValueError('payload ends within a sample')"
    )


@pytest.mark.parametrize("size", [48_000, 150_000, 780_000])
def test_a_long_message_is_recorded(server, call_sid, size):
    audio = random.randbytes(size)
    exchange(server, start(call_sid), media("inbound", audio, 0), stop())
    check_saved(server, call_sid, audio)


def test_a_message_of_more_than_1_mib_ends_the_stream(server, call_sid):
    message = media("inbound", AUDIO, 0)
    too_long = message.ljust(2**20 + 1)
    assert exchange(server, start(call_sid), message.ljust(2**20), too_long)[0] == 1009
    check_saved(server, call_sid, AUDIO)


def test_nonsense_before_start(server, call_sid):
    nonsense = MEDIA[0], '{"event":"start","start":5}'
    exchange(server, *nonsense, start(call_sid), *MEDIA, stop())
    check_saved(server, call_sid, AUDIO)
    server.wait_for(
        "WARNING unknown call: skipped b'", "ValueError('media before start')"
    )


def test_what_follows_stop_is_not_recorded(server, call_sid):
    exchange(server, start(call_sid), *MEDIA, stop(), *MEDIA)
    check_saved(server, call_sid, AUDIO)
    assert server.lines_with(f"{call_sid}: skipped") == []


def test_other_events_are_ignored(server, call_sid):
    others = [
        '{"event":"dtmf","dtmf":{"digit":"1"}}',
        '{"event":"mark"}',
        '{"event":""}',
    ]
    exchange(server, CONNECTED, start(call_sid), *others, *MEDIA, *others, stop())
    check_saved(server, call_sid, AUDIO)
    assert server.lines_with("WARNING", call_sid) == []


# The examples of the references, verbatim, with other sids and payloads

# https://signalwire.com/docs/compatibility-api/cxml/reference/voice/stream
SIGNALWIRE = """
{"event": "connected", "protocol": "Call", "version": "0.2.0"}
{"event": "start", "sequenceNumber": "1", "start": {"streamSid":
 "7d56cc11-536d-4a45-b4fb-ed3d55be843b", "accountSid":
 "b08dacad-2f6c-4de1-93d6-cc732e0c69c5", "callSid": "CALL_SID", "tracks": ["inbound"],
 "customParameters": {}, "mediaFormat":
 {"encoding": "audio/x-L16", "sampleRate": 24000, "channels": 1}}}
{"event": "media", "sequenceNumber": "42", "media":
 {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "INBOUND"}}
{"event": "dtmf", "sequenceNumber": "123", "streamSid":
 "7d56cc11-536d-4a45-b4fb-ed3d55be843b", "dtmf": {"digit": "5", "duration": 2000}}
{"event": "mark", "streamSid": "7d56cc11-536d-4a45-b4fb-ed3d55be843b", "mark":
 {"name": "my-custom-mark"}}
{"event": "stop", "sequenceNumber": "999"}
"""

# https://www.twilio.com/docs/voice/media-streams/websocket-messages
TWILIO = """
{"event": "connected", "protocol": "Call", "version": "1.0.0"}
{"event": "start", "sequenceNumber": "1", "start":
 {"accountSid": "ACXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX", "streamSid":
 "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX", "callSid": "CALL_SID", "tracks": ["inbound"],
 "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
 "customParameters": {"FirstName": "Jane", "LastName": "Doe", "RemoteParty": "Bob"}},
 "streamSid": "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"}
{"event": "media", "sequenceNumber": "3", "media":
 {"track": "outbound", "chunk": "1", "timestamp": "5", "payload": "OUTBOUND"},
 "streamSid": "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"}
{"event": "media", "sequenceNumber": "4", "media":
 {"track": "inbound", "chunk": "2", "timestamp": "5", "payload": "INBOUND"},
 "streamSid": "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"}
{"event": "dtmf", "streamSid": "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX", "sequenceNumber":
 "5", "dtmf": {"track": "inbound_track", "digit": "1"}}
{"event": "mark", "sequenceNumber": "4", "streamSid":
 "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX", "mark": {"name": "my label"}}
{"event": "stop", "sequenceNumber": "5", "stop":
 {"accountSid": "ACXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX", "callSid": "CALL_SID"},
 "streamSid": "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"}
"""


@pytest.mark.parametrize("text", [SIGNALWIRE, TWILIO], ids=["SignalWire", "Twilio"])
def test_the_messages_of_the_reference(server, text):
    call_sid = f"CA{uuid.uuid4().hex}"
    for word, audio in ("INBOUND", AUDIO), ("OUTBOUND", AUDIO[::-1]):
        text = text.replace(word, base64.b64encode(audio).decode())
    messages = (
        text.replace("CALL_SID", call_sid).replace("\n ", " ").strip().split("\n")
    )
    assert exchange(server, *messages) == (1000, "")
    inbound = recording_path(server.directory, "inbound", call_sid)
    if text.count("inbound_track"):
        check_wav(inbound, AUDIO)
        check_wav(recording_path(server.directory, "outbound", call_sid), AUDIO[::-1])
        server.wait_for(
            "{'FirstName': 'Jane', 'LastName': 'Doe', 'RemoteParty': 'Bob'}"
        )
    else:
        check_wav(inbound, AUDIO, "audio/x-L16", 24000)
    assert server.lines_with("WARNING", call_sid) == []


# Anything between good messages

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
