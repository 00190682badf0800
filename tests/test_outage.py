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
import websockets
from checks import check_saved, needs_namespaces
from recorder import APP, Client
from signalwire import TRACKS, call_messages, media, start

pytestmark = [pytest.mark.slow, needs_namespaces]
AUDIO = {track: random.Random(track).randbytes(100 * 8000) for track in TRACKS}  # 100 s


class Network:
    """The namespace of a recorder, and the link to it, which may lose all packets."""

    def __init__(self):
        self.name = f"r{os.getpid()}"
        subnet = f"10.213.{os.getpid() % 256}"  # Two of these run at the same time.
        self.address = f"{subnet}.2"
        self.ip(f"netns add {self.name}")
        self.ip(f"link add {self.name}a type veth peer eth0 netns {self.name}")
        self.ip(f"addr add {subnet}.1/30 dev {self.name}a")
        self.ip(f"link set {self.name}a up")
        self.ip(f"-n {self.name} addr add {self.address}/30 dev eth0")
        self.mend()

    def ip(self, words):
        subprocess.run(["ip", *words.split()], check=True)

    def cut(self):
        self.ip(f"-n {self.name} link set eth0 down")

    def mend(self):
        self.ip(f"-n {self.name} link set eth0 up")

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


async def stream_patiently(url, call_sid):
    """Stream a call whose sender waits as long as its TCP does."""
    options = {"ping_interval": None, "compression": None, "proxy": None}
    async with websockets.connect(url, **options) as websocket:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for milliseconds, text in call_messages(call_sid, AUDIO):
            await asyncio.sleep(began + milliseconds / 1000 - loop.time())
            await websocket.send(text)
        await websocket.wait_closed()


def test_an_outage_of_a_minute_costs_nothing(server, network):
    names = [f"call-{number}" for number in range(5)]

    async def play():
        loop = asyncio.get_running_loop()
        loop.call_later(10, network.cut)
        loop.call_later(70, network.mend)
        await asyncio.gather(*(stream_patiently(server.url, name) for name in names))

    asyncio.run(play())
    for name in names:
        for track, audio in AUDIO.items():
            check_saved(server, name, audio, track)
    assert server.lines_with("WARNING") == []


def test_a_peer_that_vanishes_is_saved_within_three_minutes(server, network):
    audio = random.randbytes(16_000)
    process = psutil.Process(server.process.pid)
    descriptors = process.num_fds()
    with Client(server) as call, Client(server) as idle:
        call.send(start("call"), media("inbound", audio, 0))
        call.wait_received()
        idle.wait_received()
        network.cut()
    began = time.monotonic()
    while process.num_fds() > descriptors:  # so both connections are closed
        assert time.monotonic() < began + 180
        time.sleep(1)
    check_saved(server, "call", audio)
    server.wait_for("call: the line dropped: 'sent 1011 ", "keepalive ping timeout")
