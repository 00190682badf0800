"""What the README says of the log and of the options is what app.py says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checks import exchange, shell_app
from recorder import APP, Client
from signalwire import media, start, stop

README = Path(APP).with_name("README.md").read_text()


def section(title):
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def phrases_of_the_log():
    """Return what the table of troubles has from the log, in backticks."""
    table = section("Troubleshooting").partition("**On the phone:**")[0]
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Return what app.py logs when all that goes wrong."""
    from conftest import running

    home = tmp_path_factory.mktemp("home")
    folder = home / "recordings"
    folder.mkdir()
    limited = shell_app("ulimit -n 64")
    token = {"AUTH_BEARER_TOKEN": "sesame"}
    chunk = b"\1" * 160
    with (
        running(home, "--directory", "recordings", command=limited) as server,
        running(home, environment=token) as guarded,
    ):
        exchange(server, start("no/name"))
        messages = [media("inbound", chunk, 0), "?", media("inbound", chunk, 1500)]
        exchange(server, start("call"), *messages, stop())
        with Client(server) as dropped, Client(guarded):
            dropped.send(start("dropped"), media("inbound", chunk, 0))
            dropped.wait_received()
            folder.rename(home / "away")
        server.wait_for("Could not save")
        (home / "away").rename(folder)
        server.wait_for("Saved recordings/Inbound-dropped.wav")
        clients = []
        while not server.lines_with("Dropped connections"):
            try:
                clients.append(Client(server))
            except ConnectionError:
                server.wait_for("Dropped connections")
        for client in clients:
            client.socket.close()
        command = [sys.executable, APP, "--host=127.0.0.1", f"--port={server.port}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        yield "".join(server.lines + guarded.lines) + done.stderr


@pytest.mark.parametrize("phrase", phrases_of_the_log())
def test_each_phrase_is_in_the_log(output, phrase):
    pattern = re.escape(phrase).replace("…", ".*")
    assert re.search(re.sub(r"\d+", r"\\d+", pattern), output), output


def test_each_option_is_in_the_table():
    text = subprocess.check_output([sys.executable, APP, "--help"], text=True)
    options = re.findall(r"^  (--\w+)", text, re.MULTILINE)
    assert re.findall(r"^\| `(--\w+)`", section("Options"), re.MULTILINE) == options
