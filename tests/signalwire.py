"""SignalWire's part of a stream: its messages, and a call that is made of them."""

import asyncio
import base64
import json
import random
import uuid

import websockets

TRACKS = ("inbound", "outbound")
CHUNK_MS = 20  # of audio in a message
MULAW = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
CONNECTED = json.dumps({"event": "connected", "protocol": "Call", "version": "0.2.0"})


def message(event, sequence_number, **fields):
    """Return the JSON text of a message."""
    return json.dumps(
        {"event": event, "sequenceNumber": str(sequence_number), **fields}
    )


def start(call_sid, tracks=("inbound",), media_format=MULAW, **fields):
    """Return the message that names the call; `fields` are added to its `start`."""
    body = {"streamSid": str(uuid.uuid4()), "accountSid": str(uuid.uuid4())}
    body |= {"callSid": call_sid, "tracks": tracks, "mediaFormat": media_format}
    return message("start", 1, start=body | fields)


def media(track, payload, timestamp, chunk=1, sequence_number=2):
    """Return the message with `payload`, bytes of audio, at `timestamp` ms."""
    body = {"track": track, "chunk": str(chunk), "timestamp": str(timestamp)}
    body["payload"] = base64.b64encode(payload).decode()
    return message("media", sequence_number, media=body)


def stop(sequence_number=3):
    """Return the last message."""
    return message("stop", sequence_number)


def sample_width(media_format):
    """Return how many bytes a sample of audio in this format has."""
    return 2 if "l16" in media_format["encoding"].lower() else 1


def call_messages(call_sid, audio, media_format=MULAW, loss=0.0, seed=None, pause=None):
    """Yield the messages of a call, each with its time in ms since the call began.

    `audio` maps the names of the tracks to their bytes. Of the chunks, the fraction
    `loss` is not sent; `seed` chooses which. `pause` is a track, a place in its audio in
    s, and for how many s nothing is sent there; what follows comes that much later.
    """
    samples = media_format["sampleRate"] * CHUNK_MS // 1000
    size = samples * sample_width(media_format)  # bytes in a chunk
    chunks = []
    for track, data in audio.items():
        for number, place in enumerate(range(0, len(data), size)):
            timestamp = number * CHUNK_MS
            if pause and track == pause[0] and timestamp >= pause[1] * 1000:
                timestamp += round(pause[2] * 1000)
            chunks.append((timestamp, track, number + 1, data[place : place + size]))
    chunks.sort(key=lambda chunk: chunk[0])
    rng, end, sequence_number = random.Random(seed), 0, 1
    yield 0, CONNECTED
    yield 0, start(call_sid, list(audio), media_format)
    for timestamp, track, number, payload in chunks:
        end = timestamp + CHUNK_MS
        if rng.random() >= loss:
            sequence_number += 1
            yield timestamp, media(track, payload, timestamp, number, sequence_number)
    yield end, stop(sequence_number + 1)


async def stream_call(url, messages, fast=False, token=None, **options):
    """Send the messages of a call to `url`; return when the server has hung up.

    Each is sent at its time or, if `fast`, at once. `options` are for connect(). Raises
    OSError if there is no server, and websockets.WebSocketException if it does not take
    the call to its end. When cancelled, closes the connection with 1001 (going away).
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options |= {"additional_headers": headers, "compression": None, "proxy": None}
    async with websockets.connect(url, **options) as websocket:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            for time, text in messages:
                if not fast:
                    await asyncio.sleep(began + time / 1000 - loop.time())
                await websocket.send(text)
            async for _ in websocket:  # until it is closed; raises if that is an error
                pass
        except asyncio.CancelledError:
            await websocket.close(websockets.CloseCode.GOING_AWAY)
            raise


def recording_path(folder, track, call_sid):
    """Return the path at which the recorder saves the first recording of a track."""
    return folder / f"{track.capitalize()}-{call_sid}.wav"


# A second of audio on one track: in chunks, in one piece, and as messages
CHUNKS = [random.Random(number).randbytes(160) for number in range(50)]
AUDIO = b"".join(CHUNKS)
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]
