"""Play SignalWire's part: stream a call to the recorder, without a phone."""

import argparse
import asyncio
import base64
import json
import sys
import uuid
from pathlib import Path

import pywav
import websockets

HERE = Path(__file__).parent
MULAW_WAV = (7, 1, 8000)  # format code, channels, sample rate
MULAW = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
CHUNK = 20  # ms of audio in a message
SAMPLE_WIDTHS = {"audio/x-mulaw": 1, "audio/x-alaw": 1, "audio/x-l16": 2}  # bytes


def connected():
    """Return the message that comes first."""
    return json.dumps({"event": "connected", "protocol": "Call", "version": "0.2.0"})


def start(call_sid, tracks, media_format=MULAW, **fields):
    """Return the message that names the call; `fields` replace those of `start`."""
    body = {
        "streamSid": str(uuid.uuid4()),
        "accountSid": str(uuid.uuid4()),
        "callSid": call_sid,
        "tracks": list(tracks),
        "mediaFormat": media_format,
    }
    return json.dumps({"event": "start", "sequenceNumber": "1", "start": body | fields})


def media(track, payload, timestamp, chunk=1, sequence_number=2):
    """Return the message that carries `payload`, bytes for `timestamp` ms."""
    body = {
        "track": track,
        "chunk": str(chunk),
        "timestamp": str(timestamp),
        "payload": base64.b64encode(payload).decode(),
    }
    number = str(sequence_number)
    return json.dumps({"event": "media", "sequenceNumber": number, "media": body})


def stop(sequence_number=3):
    """Return the message that comes last."""
    return json.dumps({"event": "stop", "sequenceNumber": str(sequence_number)})


def call(call_sid, audio, media_format=MULAW):
    """Yield the messages of a call, each with its time in ms since the call's start.

    `audio` maps the names of the tracks to their bytes.
    """
    bytes_per_ms = (
        media_format["sampleRate"]
        * SAMPLE_WIDTHS[media_format["encoding"].lower()]
        // 1000
    )
    size = CHUNK * bytes_per_ms
    chunks = [
        (number * CHUNK, number + 1, track, data[number * size : (number + 1) * size])
        for track, data in audio.items()
        for number in range(-(-len(data) // size))
    ]
    yield 0, connected()
    yield 0, start(call_sid, audio, media_format)
    sequence_number = 1
    for sequence_number, (timestamp, chunk, track, payload) in enumerate(
        sorted(chunks, key=lambda chunk: chunk[0]), 2
    ):
        yield timestamp, media(track, payload, timestamp, chunk, sequence_number)
    longest = max(map(len, audio.values()), default=0) // bytes_per_ms
    yield longest, stop(sequence_number + 1)


async def play(url, messages, fast=False, token=None):
    """Send `messages` to `url`, and wait for the server to save them and to hang up.

    Each is sent at its time or, if `fast`, at once. Raises OSError where there is no
    server, websockets.WebSocketException where it does not take the call to its end.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with websockets.connect(
        url, additional_headers=headers, compression=None, proxy=None
    ) as websocket:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for time, message in messages:
            if not fast:
                await asyncio.sleep(began + time / 1000 - loop.time())
            await websocket.send(message)
        async for _ in websocket:  # until it is closed; raises if that is for an error
            pass


def read_mulaw(path):
    """Return the audio in a mu-law WAV file; raises ValueError where it is another."""
    try:
        wav = pywav.WavRead(path)
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}") from error
    except Exception as error:  # pywav raises nothing narrower
        raise ValueError(f"Cannot read {path} as a WAV file: {error}") from error
    if (wav.getaudioformat(), wav.getnumofchannels(), wav.getsamplerate()) != MULAW_WAV:
        raise ValueError(f"{path} is not mu-law at 8000 Hz with 1 channel")
    return wav.getdata()


async def simulate(args, audio):
    """Play the calls that `args` asks for and return their callSids.

    Raises OSError or websockets.WebSocketException if the server does not take them.
    """
    call_sids = [str(uuid.uuid4()) for _ in range(args.calls)]
    calls = (call(call_sid, audio) for call_sid in call_sids)
    await asyncio.gather(*(play(args.url, c, args.fast, args.token) for c in calls))
    return call_sids


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("url", nargs="?", default="ws://localhost:5000", help="where the recorder is")
    add("--inbound", default=HERE / "inbound.wav", help="mu-law WAV file to stream")
    add("--outbound", default=HERE / "outbound.wav", help="mu-law WAV file to stream")
    choices = ["inbound", "outbound", "both"]
    add("--tracks", default="both", choices=choices, help="which of them to stream")
    add("--token", help="token for the Authorization header")
    add("--calls", default=1, type=int, help="how many calls at once")
    add("--fast", action="store_true", help="as fast as possible, not in real time")
    args = parser.parse_args()
    if args.calls < 1:
        sys.exit("--calls must be 1 or more")
    tracks = choices[:2] if args.tracks == "both" else [args.tracks]
    try:
        audio = {track: read_mulaw(getattr(args, track)) for track in tracks}
        call_sids = asyncio.run(simulate(args, audio))
    except ValueError as error:
        sys.exit(str(error))
    except (OSError, websockets.WebSocketException) as error:
        sys.exit(f"No call to {args.url}: {error}")
    seconds = max(map(len, audio.values())) / MULAW["sampleRate"]
    print(f"Streamed {args.calls} call(s) of {seconds:.1f} s to {args.url}.")
    names = [f"{t.capitalize()}-{c}.wav" for c in call_sids for t in tracks]
    more = f"and {len(names) - 2} more " if len(names) > 2 else ""
    print("Look for", *names[:2], f"{more}in the folder of the recordings.")


if __name__ == "__main__":
    main()
