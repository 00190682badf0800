"""What the README says of the log and of the options is what app.py says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorder import APP

README = APP.with_name("README.md").read_text()
TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))


def first_column(title):
    """Return the code at the start of each row of the table in a section."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    section = section.partition("**On the phone:**")[0]
    return re.findall(r"^\| `(.+?)`", section, re.MULTILINE)


@pytest.mark.parametrize("phrase", first_column("Troubleshooting"))
def test_each_phrase_that_the_readme_has_from_the_log_is_asserted(phrase):
    for words in re.split(r"Outbound-….wav|\d[\d.]*", phrase):
        assert words in TESTS


def test_each_option_is_in_the_table():
    text = subprocess.check_output([sys.executable, APP, "--help"], text=True)
    options = re.findall(r"^  (--\w+)", text, re.MULTILINE)
    assert first_column("Options")[: len(options)] == options
    assert len(first_column("Troubleshooting")) > 5
