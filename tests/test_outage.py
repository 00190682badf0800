"""The network is gone for a minute, or for good. Slow: pytest tests -m slow"""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time

import psutil
import pytest
from checks import begin_call, check_saved, needs_namespaces
from recorder import APP
from signalwire import AUDIO, MEDIA, TRACKS, call_messages, start, stream_call

pytestmark = [pytest.mark.slow, needs_namespaces]


class Network:
    """A namespace for the recorder, and a link to it that may lose all packets."""

    def __init__(self):
        self.name = f"r{os.getpid()}"
        subnet = f"10.213.{os.getpid() % 256}"  # Two of these run at the same time.
        self.address = f"{subnet}.2"
        self.ip(f"netns add {self.name}")
        self.ip(f"link add {self.name}a type veth peer eth0 netns {self.name}")
        self.ip(f"addr add {subnet}.1/30 dev {self.name}a")
        self.ip(f"link set {self.name}a up")
        self.ip(f"-n {self.name} addr add {self.address}/30 dev eth0")
        self.ip(f"-n {self.name} link set eth0 up")

    def ip(self, words):
        subprocess.run(["ip", *words.split()], check=True)

    def close(self):
        self.ip(f"netns del {self.name}")


@pytest.fixture
def network():
    with contextlib.closing(Network()) as network:
        yield network


@pytest.fixture
def server(start_server, network):
    command = ["ip", "netns", "exec", network.name, sys.executable, APP]
    return start_server("--host", network.address, command=command)


def test_an_outage_of_a_minute_costs_nothing(server, network):
    audio = {track: random.Random(track).randbytes(800_000) for track in TRACKS}
    names = [f"call-{number}" for number in range(5)]

    async def stream_calls():
        loop = asyncio.get_running_loop()
        loop.call_later(10, network.ip, f"-n {network.name} link set eth0 down")
        loop.call_later(70, network.ip, f"-n {network.name} link set eth0 up")
        calls = [call_messages(name, audio) for name in names]
        # The sender waits as long as its TCP does.
        streams = [stream_call(server.url, call, ping_interval=None) for call in calls]
        await asyncio.gather(*streams)

    asyncio.run(stream_calls())
    for name in names:
        for track, data in audio.items():
            check_saved(server, name, data, track)
    assert server.lines_with("WARNING") == []


def test_a_peer_that_vanishes_is_saved_within_three_minutes(server, network):
    process = psutil.Process(server.process.pid)
    descriptors = process.num_fds()
    with begin_call(server), begin_call(server, start("call"), *MEDIA):
        network.ip(f"-n {network.name} link set eth0 down")
    began = time.monotonic()
    while process.num_fds() > descriptors:  # so both connections are closed
        assert time.monotonic() < began + 180
        time.sleep(1)
    check_saved(server, "call", AUDIO)
    server.wait_for("call: the line dropped: 'sent 1011 ", "keepalive ping timeout")
