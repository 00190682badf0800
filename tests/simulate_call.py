"""Play SignalWire's part: stream a call to the recorder, without a phone."""

import argparse
import asyncio
import io
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
from signalwire import MULAW, TRACKS, call_messages, recording_path, stream_call
from websockets.uri import parse_uri

URL = "ws://localhost:5000"
MULAW_WAV = struct.pack("<HHI", 7, 1, 8000)  # format code, channels, sample rate in Hz
CODECS = {  # mediaFormat (its name of A-law is not documented), and soundfile's subtype
    "PCMU": (MULAW, "ULAW"),
    "PCMA": (MULAW | {"encoding": "audio/x-alaw"}, "ALAW"),
    "L16@16000h": (MULAW | {"encoding": "audio/x-L16", "sampleRate": 16000}, "PCM_16"),
    "L16@24000h": (MULAW | {"encoding": "audio/x-L16", "sampleRate": 24000}, "PCM_16"),
}
EXAMPLES = """examples:
  .venv/bin/python tests/simulate_call.py wss://a1b2.ngrok-free.dev
  .venv/bin/python tests/simulate_call.py --tracks inbound --inbound hello.wav"""


def read_mulaw(path):
    """Return the audio bytes of a mu-law WAV file. Raises OSError or ValueError."""
    data = Path(path).read_bytes()
    chunks, place = {}, 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        # A size that was not known, as in a pipe, is the largest: all that is left.
        chunks.setdefault(name, data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    if not (chunks.get(b"fmt ", b"").startswith(MULAW_WAV) and chunks.get(b"data")):
        old, new = shlex.quote(str(path)), shlex.quote(f"{Path(path).stem}-mulaw.wav")
        raise ValueError(
            f"{path} is not a WAV file of mu-law audio at 8000 Hz with 1 channel. "
            f"Convert it: ffmpeg -i {old} -ar 8000 -ac 1 -c:a pcm_mulaw {new} "
            f"or sox {old} -r 8000 -c 1 -e mu-law {new}"
        )
    return chunks[b"data"]


def convert(mulaw, codec):
    """Return mu-law bytes as bytes of `codec`. Raises ValueError without soundfile."""
    try:
        import soundfile  # which only the tests need
    except ImportError:
        command = ".venv/bin/pip install -r tests/requirements.txt"
        raise ValueError(f"--codec {codec} needs soundfile: {command}") from None
    (media_format, subtype), file = CODECS[codec], io.BytesIO()
    rate = media_format["sampleRate"]
    raw = {"format": "RAW", "subtype": "ULAW", "samplerate": 8000, "channels": 1}
    samples, _ = soundfile.read(io.BytesIO(mulaw), dtype="int16", **raw)
    samples = samples.repeat(rate // 8000)
    soundfile.write(file, samples, rate, subtype, endian="LITTLE", format="RAW")
    return file.getvalue()


def parse_pause(text, audio):
    """Return track, place in s, and length in s of a pause. Raises ValueError."""
    seconds = r"(\d{1,5}(?:\.\d+)?)"
    pause = re.fullmatch(rf"({'|'.join(TRACKS)}):{seconds}:{seconds}", text, re.ASCII)
    if not pause:
        raise ValueError(f"--pause must be like inbound:1:2.5, not {text!r}")
    track, at, length = pause[1], float(pause[2]), float(pause[3])
    end = len(audio.get(track, b"")) / 8000  # s, at a byte per sample
    if at > end - 0.02:  # where the last chunk begins
        raise ValueError(f"--pause {text}: only {end:g} s of {track} are streamed")
    return track, at, length


def call_options(args):
    """Check `args`; return what call_messages() needs. Raises OSError or ValueError."""
    scheme, _, rest = args.url.partition("://")
    right = {"https": "wss", "http": "ws"}.get(scheme.lower())
    if right:
        raise ValueError(f"write {right}:// instead of {scheme}://: {right}://{rest}")
    try:
        parse_uri(args.url)
    except (ValueError, websockets.InvalidURI):
        raise ValueError(f"the url must be like {URL}, not {args.url!r}") from None
    if args.calls < 1:
        raise ValueError(f"--calls must be 1 or more, not {args.calls}")
    if not 0 <= args.loss < 1:
        raise ValueError(f"--loss must be 0 or more, and below 1, not {args.loss:g}")
    if args.fast and args.pause is not None:
        raise ValueError("--pause needs the pace of a real call: leave out --fast")
    tracks = TRACKS if args.tracks == "both" else [args.tracks]
    audio = {track: read_mulaw(getattr(args, track)) for track in tracks}
    pause = None if args.pause is None else parse_pause(args.pause, audio)
    if args.codec != "PCMU":
        audio = {track: convert(audio[track], args.codec) for track in tracks}
    options = {"loss": args.loss, "seed": args.seed, "pause": pause}
    return options | {"audio": audio, "media_format": CODECS[args.codec][0]}


async def show_progress(begun, total, fast):
    """Count on the terminal, from when `begun` is not empty, up to `total` seconds."""
    if fast or not sys.stdout.isatty():
        return
    try:
        print("connecting", end="", flush=True)
        while not begun:
            await asyncio.sleep(0.1)
        for second in range(total + 1):
            print(f"\r{second} of {total} s  ", end="", flush=True)
            await asyncio.sleep(1)
    finally:
        print(f"\r{'':20}\r", end="", flush=True)


async def simulate(args, options, begun):
    """Stream the calls; add the callSid of each to the list `begun` when it begins."""

    def messages():
        call_sid = str(uuid.uuid4())
        begun.append(call_sid)  # stream_call() comes here once it is connected.
        yield from call_messages(call_sid, **options)

    total = max(time for time, _ in call_messages("", **options))  # ms
    progress = asyncio.create_task(show_progress(begun, round(total / 1000), args.fast))
    how = {"fast": args.fast, "token": args.token}
    calls = [stream_call(args.url, messages(), **how) for _ in range(args.calls)]
    try:
        await asyncio.gather(*calls)
    finally:
        progress.cancel()


def explain(error, token):
    """Return in words why stream_call(), given `token`, raised `error`."""
    match error:
        case websockets.InvalidStatus(response=response) if response.status_code == 401:
            return f"the recorder wants {'another' if token else 'a'} token (--token)"
        case websockets.InvalidHandshake() | websockets.InvalidURI():  # of a redirect
            return f"what answers there is no recorder: {error}"
        case websockets.ConnectionClosed(rcvd=None):
            return "the connection broke (a recorder that is killed saves nothing)"
        case websockets.ConnectionClosed(rcvd=close) if close.code == 1001:
            return "the recorder was stopped"
        case websockets.ConnectionClosed(rcvd=close):
            return f"the recorder hung up: {close}"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid: {error.verify_message}"
        case ssl.SSLError() | ConnectionResetError(errno=None):
            return "what answers there speaks no TLS; try ws:// instead of wss://"
        case TimeoutError():
            return "no answer"
        case socket.gaierror() | UnicodeError():
            return "there is no such host, or no network"
        case ConnectionRefusedError() | OSError(errno=None):  # None: several addresses
            return "connection refused; is app.py running, and on that port?"
    return os.strerror(error.errno)


def parse_command_line():
    """Return the arguments and what call_options() returns, or end the program."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES)
    parser.usage = "%(prog)s [options] [url]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    pause = "send nothing of TRACK for SECONDS, from AT seconds on"
    add = parser.add_argument
    add("url", nargs="?", default=URL, help=f"where the recorder is (default: {URL})")
    for track in TRACKS:
        wav = Path(__file__).with_name(f"{track}.wav")
        add(f"--{track}", metavar="FILE", default=wav, help="mu-law WAV file to stream")
    add("--tracks", choices=[*TRACKS, "both"], default="both", help="default: both")
    add("--codec", choices=CODECS, default="PCMU", help="default: PCMU, that is mu-law")
    add("--token", help="the recorder's AUTH_BEARER_TOKEN")
    add = parser.add_argument_group("mostly for tests").add_argument
    add("--calls", metavar="N", type=int, default=1, help="stream N calls at once")
    add("--fast", action="store_true", help="send all chunks at once")
    add("--loss", metavar="X", type=float, default=0, help="fraction of chunks to lose")
    add("--seed", metavar="N", type=int, default=1, help="choose which chunks to lose")
    add("--pause", metavar="TRACK:AT:SECONDS", help=pause)
    args = parser.parse_args()
    try:
        return args, call_options(args)
    except OSError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))


def main():
    """Run the command line."""
    args, options = parse_command_line()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a background job, too
    begun, failure = [], None
    try:
        asyncio.run(simulate(args, options, begun))
    except KeyboardInterrupt:
        failure = "Ctrl-C"
    except (OSError, UnicodeError, websockets.WebSocketException) as error:
        failure = explain(error, args.token)
    if failure and not begun:
        sys.exit(f"No call to {args.url}: {failure}")
    look = "Look for these files; the recorder's log says where they are:"
    for call_sid in begun:
        for track in options["audio"]:
            look += f"\n{recording_path(Path(), track, call_sid)}"
    if failure:
        sys.exit(f"Streaming to {args.url} ended early: {failure}.\n{look}")
    calls = "1 call" if len(begun) == 1 else f"{len(begun)} calls"
    print(f"Streamed {calls} to {args.url}.\n{look}")


if __name__ == "__main__":
    main()
