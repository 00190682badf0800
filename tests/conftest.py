"""A map of this folder, and what all tests have in common.

For users:  simulate_call.py, benchmark.py, and the two calls *.wav
For tests:  signalwire.py (its messages), recorder.py (app.py as a process, a client),
            checks.py (what the tests do and check)
Tests:      test_*.py. All: pytest tests    Some: pytest tests -n 0 -k WORDS
            Slow ones: pytest tests -m slow
"""

import contextlib
import signal
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # where app.py is

from recorder import Server

settings.register_profile("here", deadline=None, max_examples=25)
settings.load_profile("here")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with -m slow only")


def pytest_collection_modifyitems(config, items):
    if not config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@contextlib.contextmanager
def running(*args, **options):
    """Run a server; check that it ends well and without a traceback, if not killed."""
    server = Server(*args, **options)
    try:
        yield server
        assert server.stop() in (0, -signal.SIGKILL)
        assert server.lines_with("Traceback") == []
    finally:
        server.process.kill()


@pytest.fixture
def start_server(tmp_path):
    """Start servers, with the arguments of Server; they are stopped after the test."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        yield lambda *args, **options: enter(running(tmp_path, *args, **options))


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("recordings")) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """A server for all tests that leave it as it is; has no lines of earlier tests."""
    shared_server.forget_lines()
    return shared_server


@pytest.fixture
def call_sid():
    return str(uuid.uuid4())
