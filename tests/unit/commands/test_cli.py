"""The commands' manners: usage, exit codes, and sentences instead of tracebacks."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bridged import __version__
from bridged.commands import cli, status
from bridged.config import schema
from bridged.daemon import control, daemon
from bridged.journal import JournalUnavailable
from bridged.model import UserError

COMMANDS = ["run", "check", "status", "documents", "explain", "release", "drop", "send", "demo", "reload", "schema"]

VALID = """
smtp: {host: smtp.cabinet.example, sender: factures@cabinet.example}
state_dir: STATE
clients:
  - name: Boulangerie Martin
    ged: GED
    collection_email: martin@collecte.example
    switched_folders: [Achats]
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "default-state"))
    monkeypatch.delenv("BRIDGED_CONFIG", raising=False)
    (tmp_path / "ged" / "Achats").mkdir(parents=True)
    path = tmp_path / "bridged.yaml"
    path.write_text(VALID.replace("STATE", f"{tmp_path}/state").replace("GED", f"{tmp_path}/ged"), encoding="utf-8")
    return path


def bridged(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], prog_name="bridged")


def refused(result, code):
    """It ended with this code and with sentences on stderr."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.strip()
    assert "Traceback" not in result.output
    return result.stderr


def test_the_commands_are_those_of_the_manual():
    assert sorted(cli.main.commands) == sorted(COMMANDS)


def test_the_version_is_told():
    result = bridged("--version")
    assert result.exit_code == 0
    assert __version__ in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_takes_a_configuration(command):
    result = bridged(command, "--help")
    assert result.exit_code == 0
    assert "--config FILE" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("unknown",),
        ("status", "--unknown"),
        ("documents", "--state", "unknown"),
        ("explain",),
        ("send",),
        ("release",),
        ("release", "--all", "0011223344556677"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, file):
    refused(
        bridged(arguments[0], "--config", file, *arguments[1:]) if arguments[0] != "unknown" else bridged(*arguments),
        2,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("check",),
        ("status",),
        ("documents",),
        ("explain", "x"),
        ("release", "--all"),
        ("send", "x"),
        ("reload",),
    ],
)
def test_a_refused_configuration_ends_with_78_and_every_problem(arguments, file):
    file.write_text(file.read_text(encoding="utf-8") + "colour: red\ncatch_up: perhaps\n", encoding="utf-8")
    told = refused(bridged(arguments[0], "--config", file, *arguments[1:]), 78)
    assert f"{file}:9" in told
    assert f"{file}:10" in told


def test_an_absent_configuration_ends_with_78(tmp_path):
    assert "cannot be read" in refused(bridged("check", "--config", tmp_path / "absent.yaml"), 78)


def test_the_configuration_is_found_by_the_environment(file, monkeypatch):
    monkeypatch.setenv("BRIDGED_CONFIG", str(file))
    assert bridged("check").exit_code == 0


def test_the_schema_is_json():
    result = bridged("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == schema.json_schema()


def test_run_returns_the_daemons_exit_code(file, monkeypatch):
    asked = []
    monkeypatch.setattr(daemon, "run", lambda path, *, dry_run: asked.append((path, dry_run)) or 7)
    assert bridged("run", "--config", file).exit_code == 7
    assert bridged("run", "--dry-run", "--config", file).exit_code == 7
    assert asked == [(file, False), (file, True)]


def test_run_ends_with_75_when_another_instance_holds_the_state_directory(file, monkeypatch):
    def taken(_path, *, dry_run):
        raise control.InstanceRunning("Another bridged holds it: stop it first.")

    monkeypatch.setattr(daemon, "run", taken)
    assert "stop it first" in refused(bridged("run", "--config", file), 75)


def test_reload_without_a_daemon_ends_with_1(file):
    assert "No daemon is running" in refused(bridged("reload", "--config", file), 1)


def test_reload_waits_for_the_verdict(file, monkeypatch):
    asked = []
    monkeypatch.setattr("bridged.daemon.ask", lambda *args, **more: asked.append((args, more)) or {"ok": True})
    result = bridged("reload", "--config", file)
    assert result.exit_code == 0
    assert asked == [((file.parent / "state", {"command": "reload"}), {"timeout": 120.0})]


def test_reload_ends_with_78_and_every_problem_when_the_daemon_refuses(file, monkeypatch):
    problems = ["bridged.yaml:3: first.", "bridged.yaml:4: second."]
    monkeypatch.setattr("bridged.daemon.ask", lambda *_, **__: {"ok": False, "problems": problems})
    assert refused(bridged("reload", "--config", file), 78).splitlines() == problems


def test_reload_of_a_broken_file_tells_a_daemon_at_the_default_place(file, monkeypatch):
    asked = []
    monkeypatch.setattr("bridged.daemon.ask", lambda *args, **_: asked.append(args))
    file.write_text("smtp: [", encoding="utf-8")
    refused(bridged("reload", "--config", file), 78)
    assert asked == [(file.parent / "default-state", {"command": "reload"})]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("Something is wrong: mend it."), 1),
        (PermissionError(13, "Permission denied", "/var/lib/bridged/journal.sqlite"), 1),
        (JournalUnavailable("The journal cannot be used."), 1),
        (BrokenPipeError(32, "Broken pipe"), 1),
    ],
)
def test_an_error_that_a_person_can_mend_ends_in_a_sentence(error, code, file, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(status, "folder_rows", fail)
    result = bridged("status", "--config", file)
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output


def test_no_control_character_reaches_the_terminal_in_a_message(file, monkeypatch):
    def fail(*_):
        raise UserError("A relay says \x1b[2J\x07 and \u202e too.\nSecond line.")

    monkeypatch.setattr(status, "folder_rows", fail)
    told = refused(bridged("status", "--config", file), 1)
    assert told.splitlines() == ["A relay says \ufffd[2J\ufffd and \ufffd too.", "Second line."]


def test_check_needs_no_secret(file):
    text = file.read_text(encoding="utf-8").replace("sender:", "username: x, password_file: absent, sender:")
    file.write_text(text, encoding="utf-8")
    assert bridged("check", "--config", file).exit_code == 0


def test_check_smtp_ends_with_1_without_a_secret_or_without_a_relay(file):
    text = file.read_text(encoding="utf-8").replace("sender:", "username: x, password_file: absent, sender:")
    file.write_text(text.replace("smtp.cabinet.example", "127.0.0.1, port: 1"), encoding="utf-8")
    refused(bridged("check", "--smtp", "--config", file), 1)
