"""What the tests do with a recorder: play a call to it, and look at what it has saved."""

import asyncio
import io
import os
import subprocess
import sys

import pytest
from soundfile import SoundFile
from stream import APP, MULAW, Client, call, play, recording

SUBTYPES = {"audio/x-mulaw": "ULAW", "audio/x-alaw": "ALAW", "audio/x-l16": "PCM_16"}


def record(server, call_sid, audio, media_format=MULAW, token=None, pause=None):
    """Play a call with the tracks in `audio`, at once, and wait for its files."""
    messages = call(call_sid, audio, media_format, pause=pause)
    asyncio.run(play(server.url, messages, fast=True, token=token))


def talk(server, *messages):
    """Send messages on a connection of their own; return close code and reason."""
    with Client(server) as client:
        client.send(*messages)
        return client.wait_closed()


def check_recording(path, audio, encoding="audio/x-mulaw", sample_rate=8000):
    """Assert that `path` is a WAV file of exactly the bytes `audio`."""
    raw = {"format": "RAW", "subtype": SUBTYPES[encoding.lower()], "endian": "LITTLE"}
    expected = SoundFile(io.BytesIO(audio), "r", sample_rate, channels=1, **raw)
    with SoundFile(path) as found:
        assert (found.format, found.subtype) == ("WAV", expected.subtype)
        assert (found.samplerate, found.channels) == (sample_rate, 1)
        both = [file.read(dtype="int16").tobytes() for file in (expected, found)]
    # mu-law and A-law have two bytes for some values: compare the bytes as well.
    assert both[0] == both[1] and path.read_bytes().endswith(audio)


def check_saved(server, call_sid, audio, track="inbound", folder=None):
    """Wait until a track of the call has been saved; assert that it is `audio`."""
    path = recording(folder or server.directory, track, call_sid)
    server.wait_for("Saved", str(path) if folder else path.name)
    check_recording(path, audio)


def app_in(limit):
    """Return the command that runs app.py with a `limit`, words for a shell."""
    return ["bash", "-c", f'{limit} && exec "$@"', "-", sys.executable, APP]


def app_after(*lines):
    """Return the command that runs app.py after these `lines` of Python."""
    run = f"import runpy; runpy.run_path({str(APP)!r}, run_name='__main__')"
    return [sys.executable, "-c", "\n".join([*lines, run])]


def app_with(options):
    """Return the command that runs app.py with more `options` of websockets.serve."""
    changed = f"functools.partial(websockets.serve, {options})"
    return app_after("import functools, websockets", f"websockets.serve = {changed}")


def needs(command, reason):
    """Return a mark for tests that need `command` to succeed; on CI, it has to."""
    done = subprocess.run(command, check=False, capture_output=True, shell=True)
    lacking = done.returncode != 0 and not os.environ.get("CI")
    return pytest.mark.skipif(lacking, reason=reason)


needs_namespaces = needs(
    "unshare --net --mount ip link set lo up", "needs Linux, root and iproute2"
)
