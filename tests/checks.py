"""What the tests do with a recorder: play a call to it, and look at what it has saved."""

import asyncio
import io
import os
import subprocess
import sys

import pytest
import soundfile
from stream import APP, MULAW, Client, call, play, recording

SUBTYPES = {"audio/x-mulaw": "ULAW", "audio/x-alaw": "ALAW", "audio/x-l16": "PCM_16"}


def record(server, call_sid, audio, media_format=MULAW):
    """Play a call with the tracks in `audio`, at once, and wait for its files."""
    asyncio.run(play(server.url, call(call_sid, audio, media_format), fast=True))


def talk(server, *messages, token=None):
    """Send messages on a connection of their own; return close code and reason."""
    with Client(server, token) as client:
        client.send(*messages)
        return client.wait_closed()


def check_recording(path, audio, encoding="audio/x-mulaw", sample_rate=8000):
    """Assert that `path` is a WAV file of exactly the bytes `audio`."""
    subtype = SUBTYPES[encoding.lower()]
    raw = {
        "format": "RAW",
        "subtype": subtype,
        "samplerate": sample_rate,
        "channels": 1,
    }
    if subtype == "PCM_16":
        raw["endian"] = "LITTLE"
    info = soundfile.info(path)
    assert (info.format, info.subtype) == ("WAV", subtype)
    assert (info.samplerate, info.channels) == (sample_rate, 1)
    expected, _ = soundfile.read(io.BytesIO(audio), dtype="int16", **raw)
    found, _ = soundfile.read(path, dtype="int16")
    assert len(found) == len(expected) and (found == expected).all()
    # mu-law and A-law have two bytes for some values: compare the bytes as well.
    assert path.read_bytes().endswith(audio)


def check_saved(server, call_sid, audio, track="inbound", folder=None):
    """Wait until a track of the call has been saved; assert that it is `audio`."""
    path = recording(folder or server.directory, track, call_sid)
    server.wait_for("Saved", path.name)
    check_recording(path, audio)


def app_in(limit):
    """Return the command that runs app.py with a `limit`, words for a shell."""
    return ["bash", "-c", f'{limit} && exec "$@"', "-", sys.executable, APP]


def app_after(*lines):
    """Return the command that runs app.py after these `lines` of Python."""
    run = f"import runpy; runpy.run_path({str(APP)!r}, run_name='__main__')"
    return [sys.executable, "-c", "\n".join([*lines, run])]


def needs(command, reason):
    """Return a mark for tests that need `command` to succeed; on CI, it has to."""
    try:
        found = (
            subprocess.run(command, check=False, capture_output=True).returncode == 0
        )
    except OSError:
        found = False
    return pytest.mark.skipif(not found and not os.environ.get("CI"), reason=reason)


needs_namespaces = needs(
    ["unshare", "--net", "--mount", "ip", "link", "set", "lo", "up"],
    "needs Linux, root and iproute2, for namespaces and mounts",
)
