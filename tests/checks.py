"""What the tests do with a recorder, and what they check."""

import asyncio
import io
import os
import subprocess
import sys

import pytest
from recorder import APP, Client
from signalwire import MULAW, call_messages, recording_path, stream_call
from soundfile import SoundFile

SUBTYPES = {"mulaw": "ULAW", "pcmu": "ULAW", "alaw": "ALAW", "pcma": "ALAW"}


def play_call(server, call_sid, audio, media_format=MULAW, token=None, pause=None):
    """Stream a call with the tracks in `audio`, at once, and wait for its files."""
    messages = call_messages(call_sid, audio, media_format, pause=pause)
    asyncio.run(stream_call(server.url, messages, fast=True, token=token))


def exchange(server, *messages):
    """Send messages on a connection of their own; return close code and reason."""
    with Client(server) as client:
        client.send(*messages)
        return client.wait_closed()


def check_wav(path, audio, encoding="audio/x-mulaw", sample_rate=8000):
    """Check that `path` is a WAV file of exactly the bytes `audio`."""
    name = encoding.lower().removeprefix("audio/").removeprefix("x-")
    subtype = SUBTYPES.get(name, "PCM_16")
    raw = {"format": "RAW", "subtype": subtype, "endian": "LITTLE"}
    with SoundFile(io.BytesIO(audio), "r", sample_rate, channels=1, **raw) as file:
        expected = file.read(dtype="int16").tobytes()
    with SoundFile(path) as file:
        assert (file.format, file.subtype) == ("WAV", subtype)
        assert (file.samplerate, file.channels) == (sample_rate, 1)
        assert file.read(dtype="int16").tobytes() == expected
    # mu-law and A-law have two bytes for some values: compare the bytes as well.
    assert path.read_bytes().endswith(audio)


def check_saved(server, call_sid, audio, track="inbound", folder=None):
    """Wait until a track is saved, in `folder` or else the server's; check `audio`."""
    path = recording_path(folder or server.directory, track, call_sid)
    server.wait_for("INFO Saved ", str(path) if folder else path.name)
    check_wav(path, audio)


def names_in(folder):
    """Return the names of all that is in a folder."""
    return {path.name for path in folder.iterdir()}


def shell_app(words):
    """Return the command that runs app.py in a shell, after `words` for that shell."""
    return ["bash", "-c", f'{words} && exec "$@"', "-", sys.executable, APP]


def python_app(*lines):
    """Return the command that runs app.py after these `lines` of Python."""
    run = f"import runpy; runpy.run_path({str(APP)!r}, run_name='__main__')"
    return [sys.executable, "-c", "\n".join([*lines, run])]


def app_with(options):
    """Return the command that runs app.py with other `options` of websockets.serve()."""
    changed = f"lambda *args, **given: serve(*args, **given | dict({options}))"
    lines = ["import websockets", "serve = websockets.serve"]
    return python_app(*lines, f"websockets.serve = {changed}")


def needs(command, reason):
    """Return a mark for tests that need a shell `command` to succeed; on CI, it has to."""
    done = subprocess.run(command, check=False, capture_output=True, shell=True)
    is_missing = done.returncode != 0 and not os.environ.get("CI")
    return pytest.mark.skipif(is_missing, reason=reason)


UNSHARE = "unshare --net --mount ip link set lo up"
needs_namespaces = needs(UNSHARE, "needs Linux, root and iproute2")


def begin_call(server, *messages):
    """Return the client of a call, of which the server has received the messages."""
    client = Client(server)
    client.send(*messages)
    client.wait_received()
    return client
