"""Play SignalWire's part: stream a call to the recorder, without a phone."""

import argparse
import asyncio
import base64
import json
import random
import sys
import uuid
from pathlib import Path

import pywav
import websockets

HERE = Path(__file__).parent
TRACKS = ("inbound", "outbound")
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


def call(call_sid, audio, media_format=MULAW, loss=0.0, seed=None, pause=None):
    """Yield the messages of a call, each with its time in ms since the call's start.

    `audio` maps the names of the tracks to their bytes. Of the chunks, the fraction
    `loss` is not sent, chosen by `seed`. `pause` is a track, a place in its audio in s,
    and how many s nothing is sent there; what follows comes that much later.
    """
    pause_track, pause_at, pause_length = pause or (None, 0, 0)
    rng = random.Random(seed)
    width = SAMPLE_WIDTHS[media_format["encoding"].lower()]
    size = media_format["sampleRate"] * width * CHUNK // 1000
    chunks = []
    end = 0
    for track, data in audio.items():
        for number, place in enumerate(range(0, len(data), size)):
            timestamp = number * CHUNK
            if track == pause_track and timestamp >= pause_at * 1000:
                timestamp += int(pause_length * 1000)
            end = max(end, timestamp + CHUNK)
            if rng.random() >= loss:
                chunks.append(
                    (timestamp, track, number + 1, data[place : place + size])
                )
    chunks.sort(key=lambda chunk: chunk[0])
    yield 0, connected()
    yield 0, start(call_sid, audio, media_format)
    for sequence_number, (timestamp, track, number, payload) in enumerate(chunks, 2):
        yield timestamp, media(track, payload, timestamp, number, sequence_number)
    yield end, stop(len(chunks) + 2)


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
        raise ValueError(f"{path} is not a WAV file: {error}") from error
    if (wav.getaudioformat(), wav.getnumofchannels(), wav.getsamplerate()) != MULAW_WAV:
        raise ValueError(
            f"{path} is not a WAV file of mu-law at 8000 Hz with 1 channel"
        )
    return wav.getdata()


def parse_pause(text):
    """Return the track, the place and the length in s of a pause, for argparse."""
    track, at, length = text.split(":")
    if track not in TRACKS:
        raise ValueError(f"{track} is not a track")
    return track, float(at), float(length)


async def simulate(args, audio):
    """Play the calls that `args` asks for and return their callSids.

    Raises OSError or websockets.WebSocketException if the server does not take them.
    """
    call_sids = [str(uuid.uuid4()) for _ in range(args.calls)]
    calls = (
        call(call_sid, audio, MULAW, args.loss, args.seed, args.pause)
        for call_sid in call_sids
    )
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
    choices = [*TRACKS, "both"]
    add("--tracks", default="both", choices=choices, help="which of them to stream")
    add("--token", help="token for the Authorization header")
    add("--calls", default=1, type=int, help="how many calls at once")
    add("--fast", action="store_true", help="as fast as possible, not in real time")
    add("--loss", default=0.0, type=float, help="fraction of the chunks to lose")
    add("--seed", default=1, type=int, help="which of the chunks to lose")
    pause = {"type": parse_pause, "metavar": "TRACK:AT:SECONDS"}
    add("--pause", **pause, help="send nothing of a track for SECONDS, AT s into it")
    args = parser.parse_args()
    if args.calls < 1 or not 0 <= args.loss <= 1:
        sys.exit("--calls must be 1 or more, --loss 0 to 1")
    tracks = TRACKS if args.tracks == "both" else [args.tracks]
    try:
        audio = {track: read_mulaw(getattr(args, track)) for track in tracks}
        call_sids = asyncio.run(simulate(args, audio))
    except ValueError as error:
        sys.exit(str(error))
    except (OSError, websockets.WebSocketException) as error:
        sys.exit(f"No call to {args.url}: {error}")
    print(f"Streamed {args.calls} call(s) to {args.url}.")
    names = [f"{t.capitalize()}-{c}.wav" for c in call_sids for t in tracks]
    more = f"and {len(names) - 2} more " if len(names) > 2 else ""
    print("Look for", *names[:2], f"{more}in the folder of the recordings.")


if __name__ == "__main__":
    main()
