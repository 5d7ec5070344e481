"""The systemd unit, measured by systemd's own tools."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

from tests.support.packages import needs

ROOT = Path(__file__).resolve().parents[3]
UNIT = ROOT / "systemd" / "bridged.service"
SITE = ROOT / "systemd" / "bridged.service.d" / "site.conf.example"

needs_systemd_analyze = needs("systemd-analyze")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


def complaints(unit: Path) -> list[str]:
    """The complaints of `verify`, except that the command is not installed on this machine."""
    said = analyze("verify", "--man=no", str(unit)).stderr.splitlines()
    return [line for line in said if "/opt/bridged/bin/bridged is not executable" not in line]


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.match(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@needs_systemd_analyze
def test_systemd_finds_nothing_to_complain_about():
    """`verify` exits 0 even for unknown keys, so its stderr must be empty."""
    assert complaints(UNIT) == []


@needs_systemd_analyze
def test_an_unknown_key_would_be_noticed(tmp_path):
    copy = tmp_path / "bridged.service"
    copy.write_text(UNIT.read_text().replace("PrivateTmp=true", "PrivateTmpp=true"))
    assert any("PrivateTmpp" in line for line in complaints(copy))


@needs_systemd_analyze
def test_the_exposure_is_at_most_one_and_a_half():
    """The threshold is in tenths; above it `security` exits with a failure."""
    result = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(UNIT))
    closing = [line for line in result.stdout.splitlines() if "Overall exposure level" in line]
    assert result.returncode == 0, closing
    assert float(re.search(r"service: ([0-9.]+)", closing[0])[1]) <= 1.5


@needs_systemd_analyze
def test_the_sample_drop_in_is_understood_with_every_line_switched_on(tmp_path):
    copy = tmp_path / "bridged.service"
    copy.write_text(UNIT.read_text() + re.sub(r"(?m)^#(?=\w+=)", "", SITE.read_text()))
    assert complaints(copy) == []


def test_every_setting_of_the_drop_in_is_optional_or_a_group():
    """Copied as it is, the example changes nothing but who may read the documents."""
    parser = configparser.ConfigParser(allow_no_value=True)
    parser.optionxform = str
    parser.read(SITE)
    assert {section: dict(parser[section]) for section in parser.sections()} == {
        "Unit": {},
        "Service": {"SupplementaryGroups": "ged"},
    }


def test_the_unit_reloads_through_the_command_that_waits_for_the_verdict():
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["ExecStart"] == ["/opt/bridged/bin/bridged run"]
    assert unit["ExecReload"] == ["/opt/bridged/bin/bridged reload"]


def test_a_refused_configuration_is_not_started_again_and_again():
    unit = settings()
    assert "78" in unit["RestartPreventExitStatus"][0].split()
    assert unit["Restart"] == ["on-failure"]


def test_the_unit_keeps_other_users_from_the_journal():
    unit = settings()
    assert unit["StateDirectory"] == ["bridged"]
    assert unit["StateDirectoryMode"] == ["0700"]
    assert unit["UMask"] == ["0077"]


def test_a_crash_leaves_no_core_dump_with_documents_and_the_password():
    assert settings()["LimitCORE"] == ["0"]


def test_a_missing_password_does_not_keep_the_unit_from_starting():
    """An absolute path in LoadCredential= is fatal when its file is missing; a name is not."""
    assert all("/" not in value for value in settings()["LoadCredential"])


def test_markers_can_be_written_in_a_folder_that_a_reload_adds():
    """`strict` would leave every GED that is not in ReadWritePaths= read-only."""
    unit = settings()
    assert unit["ProtectSystem"] == ["full"]
    assert "ReadWritePaths" not in unit
    assert "ReadOnlyPaths" not in unit
