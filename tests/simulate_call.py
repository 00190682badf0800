"""Play SignalWire's part: stream a call to the recorder, without a phone."""

import argparse
import asyncio
import itertools
import os
import re
import shlex
import signal
import socket
import ssl
import struct
import sys
import uuid
from pathlib import Path

import websockets
from stream import MULAW, TRACKS, call, play, recording
from websockets.uri import parse_uri

HERE = Path(__file__).parent
MULAW_WAV = struct.pack("<HHI", 7, 1, 8000)  # format code, channels, sample rate in Hz


def read_mulaw(path):
    """Return the audio in a mu-law WAV file; end the program if it is not one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        sys.exit(f"Cannot read {path}: {error.strerror}")
    chunks, place = {}, 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        # A size that was not known, as in a pipe, is the largest: all that is left.
        chunks.setdefault(name, data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    is_wav = data[:4] + data[8:12] == b"RIFFWAVE"
    is_mulaw = chunks.get(b"fmt ", b"").startswith(MULAW_WAV)
    if not (is_wav and is_mulaw and chunks.get(b"data")):
        old, new = shlex.quote(str(path)), shlex.quote(f"{Path(path).stem}-mulaw.wav")
        sys.exit(
            f"{path} is not a WAV file of mu-law audio at 8000 Hz with 1 channel. "
            f"Convert it: ffmpeg -i {old} -ar 8000 -ac 1 -c:a pcm_mulaw {new} "
            f"or sox {old} -r 8000 -c 1 -e mu-law {new}"
        )
    return chunks[b"data"]


def parse_pause(text):
    """Return track, place and length in s of a pause; end the program if it is none."""
    seconds = r"(\d{1,5}(?:\.\d+)?)"
    pause = re.fullmatch(rf"({'|'.join(TRACKS)}):{seconds}:{seconds}", text, re.ASCII)
    if not pause:
        sys.exit(f"--pause must be TRACK:AT:SECONDS, like inbound:1:2.5, not {text!r}")
    return pause[1], float(pause[2]), float(pause[3])


async def count_seconds(begun):
    """Count the seconds, and the calls in `begun`, on the terminal if there is one."""
    if not sys.stdout.isatty():
        return
    try:
        for seconds in itertools.count():
            line = f"\r{seconds} s: streaming {len(begun)} call(s)"
            print(line, end="", flush=True)
            await asyncio.sleep(1)
    finally:
        print(f"\r{'':40}\r", end="", flush=True)


async def simulate(args, audio, pause, begun):
    """Play the calls that `args` asks for; add their callSids to `begun` as they begin.

    Raises what play() raises if the server does not take one of them to its end.
    """

    def messages(call_sid):
        begun.append(call_sid)  # play() comes here once it is connected
        yield from call(call_sid, audio, MULAW, args.loss, args.seed, pause)

    calls = [messages(str(uuid.uuid4())) for _ in range(args.calls)]
    counting = asyncio.create_task(count_seconds(begun))
    try:
        await asyncio.gather(*(play(args.url, c, args.fast, args.token) for c in calls))
    finally:
        counting.cancel()


def explain(error, token):
    """Return in words why play(), given `token`, raised `error`."""
    match error:
        case websockets.InvalidStatus(response=response):
            if response.status_code != 401:
                return f"that is no recorder, it answers HTTP {response.status_code}"
            return f"the server wants {'another' if token else 'a'} token (--token)"
        case websockets.InvalidHandshake() | websockets.InvalidURI():  # of a redirect
            return "what answers there is no WebSocket server"
        case websockets.ConnectionClosed(rcvd=None):
            return "the connection broke (a recorder that is killed saves nothing)"
        case websockets.ConnectionClosed(rcvd=close) if close.code == 1001:
            return "the server was stopped"
        case websockets.ConnectionClosed(rcvd=close):
            return f"the server hung up: {close}"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid: {error.verify_message}"
        case ssl.SSLError() | ConnectionResetError(errno=None):
            return "what answers there speaks no TLS; try ws:// instead of wss://"
        case TimeoutError():
            return "no answer"
        case socket.gaierror() | ValueError():
            return "there is no such host, or no network"
        case ConnectionRefusedError() | OSError(errno=None):  # None: several addresses
            return "connection refused; is app.py running, and on that port?"
    return os.strerror(error.errno)


def main():
    """Run the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    url, audio_file = "ws://localhost:5000", "mu-law WAV file to stream"
    choices = [*TRACKS, "both"]
    pause_help = "send nothing of a track for SECONDS, AT s into it"
    parser.add_argument("url", nargs="?", default=url, help="where the recorder is")
    parser.add_argument("--inbound", default=HERE / "inbound.wav", help=audio_file)
    parser.add_argument("--outbound", default=HERE / "outbound.wav", help=audio_file)
    parser.add_argument("--tracks", default="both", choices=choices, help="to stream")
    parser.add_argument("--token", help="token for the Authorization header")
    parser.add_argument("--calls", default=1, type=int, help="how many calls at once")
    parser.add_argument("--fast", action="store_true", help="not in real time")
    parser.add_argument("--loss", default=0.0, type=float, help="fraction to lose")
    parser.add_argument("--seed", default=1, type=int, help="which chunks to lose")
    parser.add_argument("--pause", metavar="TRACK:AT:SECONDS", help=pause_help)
    args = parser.parse_args()
    try:
        parse_uri(args.url)
    except (ValueError, websockets.InvalidURI):
        example = "ws://localhost:5000 or wss://a1b2.ngrok-free.app"
        sys.exit(f"The url must be like {example}, not {args.url!r}")
    if args.calls < 1:
        sys.exit(f"--calls must be 1 or more, not {args.calls}")
    if not 0 <= args.loss < 1:
        sys.exit(f"--loss must be 0 or more, and below 1 (all lost), not {args.loss:g}")
    pause = None if args.pause is None else parse_pause(args.pause)
    tracks = TRACKS if args.tracks == "both" else [args.tracks]
    audio = {track: read_mulaw(getattr(args, track)) for track in tracks}

    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a background job, too
    begun, failure = [], None
    try:
        asyncio.run(simulate(args, audio, pause, begun))
    except KeyboardInterrupt:
        failure = "Ctrl-C"
    except (OSError, ValueError, websockets.WebSocketException) as error:
        failure = explain(error, args.token)
    if failure and not begun:
        sys.exit(f"No call to {args.url}: {failure}")
    files = [str(recording(Path(), track, sid)) for sid in begun for track in tracks]
    more = f" and {len(files) - 2} more" if len(files) > 2 else ""
    look = f"Look for {' '.join(files[:2])}{more} in the folder of the recordings"
    if failure:
        until = f"{failure}. {look}, with what came until then."
        sys.exit(f"Streaming to {args.url} ended early: {until}")
    print(f"Streamed {args.calls} call(s) to {args.url}.\n{look}.")


if __name__ == "__main__":
    main()
