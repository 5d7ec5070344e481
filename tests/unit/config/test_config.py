"""Loading a configuration: every refusal with its line, its place and a remedy; each value, and its kind."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import time
from pathlib import Path

import pytest

from bridged.config import ConfigError, conflicts, json_schema, load
from bridged.config import loading as config
from bridged.config.lines import read
from bridged.config.settings import Smtp
from bridged.model import UserError
from bridged.relay import password

ROOT = Path(__file__).parents[3]
SMALL = """\
smtp:
  host: smtp.cabinet.example
  sender: factures@cabinet.example
clients:
  - name: Boulangerie Martin
    ged: /srv/ged/martin
    collection_email: martin@collecte.example
    switched_folders: [Achats]
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "BRIDGED_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settings(tmp_path):
    """Loads a text."""

    def of(text):
        file = tmp_path / "bridged.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(file)

    return of


@pytest.fixture
def problems(settings):
    """The problems of a text that must be refused."""

    def of(text):
        with pytest.raises(ConfigError) as refused:
            settings(text)
        assert refused.value.exit_code == 78
        assert str(refused.value).splitlines() == [str(p) for p in refused.value.problems]
        for problem in refused.value.problems:
            assert problem.message.endswith("."), "a message is a sentence"
            assert problem.remedy.endswith((".", "?")), "a remedy is a sentence"
            assert len(str(problem)) < 600, "nobody reads a problem that long"
        return refused.value.problems

    return of


def told(found):
    return [(p.line, p.where) for p in found]


# -- accepted


def test_the_sample_configuration_is_valid():
    """A copy of the sample starts a daemon."""
    sample = load(ROOT / "config" / "bridged.yaml")
    assert [f.path for f in sample.clients[0].switched_folders] == ["Exercice */Achats", "Notes de frais"]
    assert sample.clients[0].switched_folders[1].exclude == ("Brouillons",)


def test_the_published_schema_is_the_one_of_the_code():
    """An editor that completes by config/bridged.schema.json agrees with the daemon."""
    assert json.loads((ROOT / "config" / "bridged.schema.json").read_text(encoding="utf-8")) == json_schema()


def test_only_host_sender_and_clients_are_required_and_the_rest_has_its_default(settings):
    """A small file gets the values that contract section 6 shows."""
    found = settings(SMALL)
    assert (found.smtp.port, found.smtp.security, found.smtp.connections) == (587, "starttls", 2)
    assert (found.smtp.timeout, found.smtp.rate, found.smtp.username) == (60.0, None, None)
    assert found.retry.model_dump() == {
        "first": 30.0,
        "max": 1800.0,
        "give_up_after": 5 * 86400.0,
        "uncertain_attempts": 3,
    }
    assert found.watch.model_dump() == {"mode": "auto", "quiet": 2.0, "quiet_limit": 600.0, "sweep": 60.0, "poll": 10.0}
    assert found.marker.model_dump() == {"suffix": ".validated.json", "hidden": False}
    assert found.log.model_dump() == {"format": "auto", "level": "info"}
    assert (found.subject, found.ignore, found.catch_up, found.on_overwrite) == ("{document}", (), False, "ignore")
    assert found.state_dir == Path("/var/lib/bridged")


@pytest.mark.parametrize(("security", "port"), [("starttls", 587), ("tls", 465), ("plain", 25)])
@pytest.mark.parametrize("written", ["", "\n  port:"])
def test_the_port_follows_from_the_security(settings, security, port, written):
    """No port, or a port with nothing behind it, is the usual one."""
    text = SMALL.replace("smtp:\n", f"smtp:\n  security: {security}{written}\n", 1)
    assert settings(text).smtp.port == port


def test_the_state_directory_is_systemds_first_unless_the_file_names_one(settings, monkeypatch):
    """systemd separates several by a colon."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert settings(SMALL).state_dir == Path("/var/lib/a")
    assert settings(SMALL + "state_dir: /var/lib/c\n").state_dir == Path("/var/lib/c")


def test_the_state_directory_of_an_empty_variable_is_the_default(settings, monkeypatch):
    """Never the working directory."""
    monkeypatch.setenv("STATE_DIRECTORY", "")
    assert settings(SMALL).state_dir == Path("/var/lib/bridged")


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("5m", 300.0), ("3h", 10800.0), ("5d", 432000.0), ("1.5s", 1.5)]
)
def test_a_duration_is_a_number_and_a_unit(settings, text, seconds):
    """As the contract writes them."""
    assert settings(SMALL + f"watch: {{quiet: {text}}}\n").watch.quiet == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["2", "2 s", "-2s", "s", "0s", "1:30", "true", "[2s]", "9999999d", "9" * 400 + "d"])
def test_a_text_that_is_no_duration_is_refused(problems, text):
    """Also a bare number, nothing at all, and more than a clock can hold."""
    assert told(problems(SMALL + f"watch:\n  sweep: {text}\n")) == [(10, "watch.sweep")]


@pytest.mark.parametrize(("text", "rate"), [("30/min", (30, 60.0)), ("500/h", (500, 3600.0)), ("5 / s", (5, 1.0))])
def test_a_rate_is_a_count_per_time(settings, text, rate):
    """30/min is thirty messages in any minute."""
    found = settings(SMALL.replace("smtp:\n", f"smtp:\n  rate: {text}\n", 1)).smtp.rate
    assert (found.count, found.seconds) == rate


@pytest.mark.parametrize("text", ["30", "0/min", "30/week", "fast", "[30]", "-1/s"])
def test_a_text_that_is_no_rate_is_refused(problems, text):
    """A limit that cannot be kept is none."""
    assert told(problems(SMALL.replace("smtp:\n", f"smtp:\n  rate: {text}\n", 1))) == [(2, "smtp.rate")]


@pytest.mark.parametrize("section", ["retry", "watch", "marker", "log", "ignore", "subject", "catch_up", "state_dir"])
def test_a_section_with_nothing_below_it_is_as_good_as_none(settings, section):
    """A heading is left when a person comments out every line of a section."""
    assert settings(SMALL + f"{section}:\n  # quiet: 5s\n") == settings(SMALL)


def test_keys_with_nothing_behind_them_have_their_defaults(settings):
    """Inside of sections, clients and folders too."""
    text = SMALL.replace("[Achats]", "\n      - {path: Achats, exclude: , collection_email: }").replace(
        "ged:", "sender:\n    shared_collection_email:\n    ged:"
    )
    assert settings(text + "watch: {quiet: }\n") == settings(SMALL)


def test_required_keys_with_nothing_behind_them_say_so_on_their_line(problems):
    """`Add host:` would be no help where it stands."""
    found = problems("smtp:\n  host:\n  sender: a@cabinet.example\nclients:\n")
    assert told(found) == [(2, "smtp.host"), (4, "clients")]
    assert "nothing stands here" in found[0].message


def test_names_that_yaml_takes_for_numbers_or_booleans_stay_as_written(settings):
    """A year's folder needs no quotes, and 0012 is not 10."""
    text = SMALL.replace("Boulangerie Martin", "4711").replace(
        "[Achats]",
        "[2026, 0012, 2026-01-31, 2026-02-30, 12:30, No, 1_000, 1e3, {path: 2025, exclude: [2024, on]}]",
    )
    client = settings(text + "ignore: [2023, off]\n").clients[0]
    assert client.name == "4711"
    assert [f.path for f in client.switched_folders] == [
        "2026",
        "0012",
        "2026-01-31",
        "2026-02-30",
        "12:30",
        "No",
        "1_000",
        "1e3",
        "2025",
    ]
    assert client.switched_folders[-1].exclude == ("2024", "on")
    assert settings(text + "ignore: [2023, off]\n").ignore == ("2023", "off")


def test_paths_are_brought_to_their_plain_form(settings):
    """Slashes and dots too many change nothing; '.' is the whole GED."""
    text = SMALL.replace("[Achats]", "[./Achats//2026/, .]").replace("/srv/ged/martin", "//srv/ged/./martin/")
    client = settings(text).clients[0]
    assert [f.path for f in client.switched_folders] == ["Achats/2026", "."]
    assert client.ged == Path("/srv/ged/martin")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(settings):
    """Notepad writes both."""
    assert settings(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()) == settings(SMALL)


def test_the_file_is_the_options_then_the_environments_then_the_usual_one(monkeypatch):
    """As contract section 6 orders them."""
    assert config.find_config(None) == Path("/etc/bridged/bridged.yaml")
    monkeypatch.setenv("BRIDGED_CONFIG", "/srv/b.yaml")
    assert config.find_config(None) == Path("/srv/b.yaml")
    assert config.find_config(Path("/srv/a.yaml")) == Path("/srv/a.yaml")


# -- refused


EVERYTHING_WRONG = """\
smtp:
  hots: smtp.cabinet.example
  host: smtp.cabinet.example
  host: smtp2.cabinet.example
  port: many
  security: ssl
  password: hunter2
  sender: Cabinet <factures@cabinet.example>
subject: "{file}"
retries: {first: 30s}
watch: often
log: {level: loud}
catch_up: 1
state_dir: var/lib
clients:
  - name: Martin
    ged: srv/ged/martin
    collection_email: martin@collecte
    switched_folders: Achats
  - name: martin
    ged: /srv/../ged
    collection_email: dupont@collecte.example
    switched_folders:
      - /Achats
      - ../Achats
      - path: Notes
        colection_email: notes@collecte.example
      - Achats
      - Achats/
  - name: Durand
    ged: /srv/ged/durand
    collection_email: Dupont@collecte.example
  - ged: /srv/ged/durand/inner
    collection_email: petit@collecte.example
"""


def test_every_problem_is_told_at_once_with_its_line_and_its_place(problems):
    """One round of corrections is enough, because no problem hides another."""
    found = problems(EVERYTHING_WRONG)
    assert sorted(told(found)) == [
        (2, "smtp.hots"),
        (4, "smtp.host"),
        (5, "smtp.port"),
        (6, "smtp.security"),
        (7, "smtp.password"),
        (8, "smtp.sender"),
        (9, "subject"),
        (10, "retries"),
        (11, "watch"),
        (12, "log.level"),
        (13, "catch_up"),
        (14, "state_dir"),
        (17, "clients[0].ged"),
        (18, "clients[0].collection_email"),
        (19, "clients[0].switched_folders"),
        (20, "clients[1].name"),
        (21, "clients[1].ged"),
        (24, "clients[1].switched_folders[0]"),
        (25, "clients[1].switched_folders[1]"),
        (27, "clients[1].switched_folders[2].colection_email"),
        (29, "clients[1].switched_folders[4]"),
        (32, "clients[2].collection_email"),
        (33, "clients[3].ged"),
        (33, "clients[3].name"),
    ]
    assert [p.line for p in found] == sorted(p.line for p in found)
    assert "hunter2" not in "\n".join(map(str, found))
    assert not any("Correct the value" in p.remedy for p in found if p.line != 5), "a remedy says what to write"


def test_a_problem_is_one_line_with_file_line_place_sentence_and_remedy(problems, tmp_path):
    """As compilers write them, so that editors find the place."""
    (problem,) = problems(SMALL + "catch-up: true\n")
    place = f"{tmp_path}/bridged.yaml:9: catch-up:"
    assert str(problem) == f"{place} The key 'catch-up' is unknown. Did you mean 'catch_up'?"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("smtp.cabinet.example", "smtp://user:hunter2@smtp.cabinet.example", "smtp.host"),
        ("smtp.cabinet.example", "[a]", "smtp.host"),
        ("host:", "port: true\n  host:", "smtp.port"),
        ("host:", "port: 0\n  host:", "smtp.port"),
        ("host:", "port: 65536\n  host:", "smtp.port"),
        ("host:", "connections: 0\n  host:", "smtp.connections"),
        ("host:", 'connections: "2"\n  host:', "smtp.connections"),
        ("host:", "ca_file: [a]\n  host:", "smtp.ca_file"),
        ("factures@cabinet.example", '"a@cabinet.example\\r\\nBcc: b@cabinet.example"', "smtp.sender"),
        ("factures@cabinet.example", "a..b@cabinet.example", "smtp.sender"),
        ("factures@cabinet.example", "[a@cabinet.example]", "smtp.sender"),
        ("martin@collecte.example", "a@collecte.example, b@collecte.example", "clients[0].collection_email"),
        ("Boulangerie Martin", '"Martin\\nX"', "clients[0].name"),
        ("Boulangerie Martin", '"\\ud800"', "clients[0].name"),
        ("Boulangerie Martin", "[a]", "clients[0].name"),
        ("/srv/ged/martin", "/", "clients[0].ged"),
        ("/srv/ged/martin", "//./", "clients[0].ged"),
        ("/srv/ged/martin", '"/srv/a\\0b"', "clients[0].ged"),
        ("/srv/ged/martin", '"/srv/\\ud800"', "clients[0].ged"),
        ("/srv/ged/martin", "5", "clients[0].ged"),
        ("[Achats]", "[~]", "clients[0].switched_folders[0]"),
        ("[Achats]", "[[Achats]]", "clients[0].switched_folders[0]"),
        ("[Achats]", "[A/**/B]", "clients[0].switched_folders[0]"),
        ("[Achats]", "[{path: /Achats}]", "clients[0].switched_folders[0].path"),
        ("[Achats]", "[{exclude: [a]}]", "clients[0].switched_folders[0].path"),
        ("[Achats]", "[{path: A, exclude: a}]", "clients[0].switched_folders[0].exclude"),
        ("[Achats]", "[{path: A, exclude: [../a]}]", "clients[0].switched_folders[0].exclude[0]"),
        ("[Achats]", "[./Achats, Achats]", "clients[0].switched_folders[1]"),
        ("[Achats]", "{path: Achats}", "clients[0].switched_folders"),
        ("ged:", 'shared_collection_email: "true"\n    ged:', "clients[0].shared_collection_email"),
        ("clients:\n", "marker: {suffix: json}\nclients:\n", "marker.suffix"),
        ("clients:\n", "marker: {suffix: ./json}\nclients:\n", "marker.suffix"),
        ("clients:\n", "on_overwrite: on\nclients:\n", "on_overwrite"),
        ("clients:\n", "retry: {uncertain_attempts: 1.5}\nclients:\n", "retry.uncertain_attempts"),
        ("clients:\n", 'subject: "{document"\nclients:\n', "subject"),
        ("clients:\n", "ignore: '*.bak'\nclients:\n", "ignore"),
        ("host:", "username: a\n  host:", "smtp.username"),
        ("host:", "password_file: a\n  host:", "smtp.password_file"),
        ("host:", "username: a\n  password_file: a\n  password_env: A\n  host:", "smtp.password_env"),
        ("clients:\n", "Password: hunter2\nclients:\n", "Password"),
        ("ged:", "password: hunter2\n    ged:", "clients[0].password"),
        ("host:", "password: {password: hunter2}\n  host:", "smtp.password"),
    ],
)
def test_a_wrong_value_is_refused_at_its_place(problems, old, new, where):
    """No other problem is made up, and nothing that may be a password is repeated."""
    found = problems(SMALL.replace(old, new, 1))
    assert where in {p.where for p in found}
    assert {p.where for p in found} <= {where, f"{where}.password"}
    assert "hunter2" not in "\n".join(map(str, found))


def test_settings_that_need_each_other_are_checked_along_with_the_rest(problems):
    """A missing password is told along with the other problems."""
    found = problems(
        SMALL.replace("host: smtp.cabinet.example", "username: a\n  port: x\n  host: smtp.cabinet.example")
    )
    assert told(found) == [(2, "smtp.username"), (3, "smtp.port")]


def client(name, ged, address, more=""):
    return f"  - {{name: {name}, ged: {ged}, collection_email: {address}{more}}}\n"


def test_one_address_for_two_clients_needs_the_word_of_both(settings, problems):
    """Documents of two clients in one collection are a choice, never a slip; case makes no other address."""
    smtp = SMALL.partition("clients:")[0] + "clients:\n"
    one, two = ("A", "/srv/a", "x@collecte.example"), ("B", "/srv/b", "X@Collecte.example")
    shared = ", shared_collection_email: true"
    assert told(problems(smtp + client(*one) + client(*two))) == [(6, "clients[1].collection_email")]
    assert told(problems(smtp + client(*one, shared) + client(*two))) == [(6, "clients[1].collection_email")]
    assert settings(smtp + client(*one, shared) + client(*two, shared)).clients[1].collection_email == two[2]


def test_a_folders_own_address_may_not_be_another_clients(problems):
    """The same mixing, one level down."""
    smtp = SMALL.partition("clients:")[0] + "clients:\n"
    folder = ", switched_folders: [{path: A, collection_email: x@collecte.example}]"
    text = smtp + client("A", "/srv/a", "x@collecte.example") + client("B", "/srv/b", "y@collecte.example", folder)
    assert told(problems(text)) == [(6, "clients[1].switched_folders[0].collection_email")]


@pytest.mark.parametrize("order", [1, -1])
def test_geds_overlap_in_either_order_and_also_through_a_link(problems, tmp_path, order):
    """A document belongs to one client only. Names that merely begin alike do not overlap."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    entries = [
        client("A", tmp_path / "real", "a@collecte.example"),
        client("B", tmp_path / "link" / "inner", "b@collecte.example"),
    ]
    apart = client("C", tmp_path / "real-2", "c@collecte.example")
    text = SMALL.partition("clients:")[0] + "clients:\n" + "".join(entries[::order]) + apart
    assert told(problems(text)) == [(6, "clients[1].ged")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("smtp: [\n", 2),
        ("smtp:\n\thost: a\n", 2),
        ("smtp:\n  host: a\n host: b\n", 3),
        ("a: 1\nb: \x00\n", 2),
        ("smtp: !!python/object/apply:os.system [id]\nclients: !!python/name:os.system\n", 2),
        ("smtp: {password: *hunter2}\n", 1),
        ("smtp: {password: !hunter2 x}\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("just text\n", 1),
        ("- a\n", 1),
        ("~\n", 1),
    ],
)
def test_a_file_that_is_no_yaml_or_no_mapping_is_refused_on_its_line(problems, text, line):
    """Nothing is constructed from a tag, and nothing that may be a password is repeated."""
    (problem,) = [p for p in problems(text) if p.line == line][:1]
    assert "hunter2" not in str(problem)


def test_an_empty_file_is_refused_for_each_required_key(problems):
    """The refusal names the keys to begin with."""
    assert {p.where for p in problems("")} == {"smtp", "clients"}


def test_a_file_that_is_not_utf_8_is_refused(problems):
    """Half of the clients' names would be wrong."""
    (problem,) = problems("name: été".encode("latin-1"))
    assert "UTF-8" in problem.message


def test_a_file_that_cannot_be_read_is_a_refusal_that_names_it(tmp_path):
    """Absent, or a directory."""
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load(path)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
LONG = "x" * 900_000


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 100_000,
        "a: " + "x" * 10_000_000 + "\n",
        SMALL + f"x: &x {LONG}\nignore: {{}}\nretry: {{first: *x, max: *x}}\n*x : 1\n",
        SMALL + "watch: {quiet: 0x" + "f" * 100_000 + "}\n",
    ],
    ids=["billion", "itself", "mapping of itself", "deep", "10 MB", "long value and key", "endless number"],
)
def test_a_file_that_is_a_bomb_is_refused_before_it_unfolds(problems, text):
    """The daemon reads the file by itself at each edit: it must neither fill the memory nor stand still."""
    began = time.monotonic()
    assert problems(text)
    assert time.monotonic() - began < 30


def clients(count, of):
    """A configuration of so many clients."""
    return SMALL.partition("clients:")[0] + "clients:\n" + "".join(of(i) for i in range(count))


def many(item, count, separator=", "):
    return separator.join([item] * count)


HARM = {
    "duplicate keys by alias": lambda: f"x: &x {{{many('a: 1', 20_000)}}}\ny: [{many('*x', 20_000)}]\n",
    "a sum of sixties": lambda: f"x: {many('59', 300_000, ':')}\n",
    "clients by alias": lambda: (
        f"c: &c {{name: A, ged: /a, collection_email: a@b.example}}\nx: [{many('*c', 30_000)}]\n"
    ),
    "a long name by alias": lambda: f"n: &n {'x' * 600_000}\nclients: [{many('{name: *n}', 10_000)}]\n",
    "a long key by alias": lambda: f"n: &n {'x' * 600_000}\nclients: [{many('{*n : 1}', 10_000)}]\n",
    "a flood of small values": lambda: f"x: [{many('a', 300_000)}]\n",
    "a flood of dashes": lambda: "x:\n" + "- - - - - - - - - -\n" * 49_000,
    "a GED of 800 kB": lambda: SMALL.replace("/srv/ged/martin", "/a" * 400_000),
    "a state_dir of 500 kB beside 6000 clients": lambda: (
        f"state_dir: {'/a' * 250_000}\n" + clients(6000, lambda i: client(f"C{i}", f"/b/{i}", f"a{i}@b.example"))
    ),
    "unknown keys": lambda: SMALL + "".join(f"client{i}:\n" for i in range(39_000)),
    "empty clients": lambda: f"clients: [{many('{}', 70_000)}]\n",
    "one folder 75,000 times": lambda: SMALL.replace("[Achats]", f"[{many('A', 75_000)}]"),
}


@pytest.mark.parametrize("text", HARM.values(), ids=HARM)
def test_no_megabyte_takes_minutes_or_the_memory(problems, text):
    """Each of them took between 10 s and no end, or some GB. The machine may be busy: in itself, 1 to 4 s."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = problems(text())
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
    assert len(found) <= 102


@pytest.mark.parametrize("full", [False, True])
def test_as_many_clients_as_fit_into_the_largest_file_are_taken(settings, full):
    """2000 clients of 5 folders each, and 1400 with all that a folder can have, are below every limit."""
    folder = (
        "      - path: Exercice 2026/F{n}\n        collection_email: c{i}-{n}@collecte.example\n        exclude: [B]\n"
    )
    bare = "      - Exercice 2026/Folder {n}\n"

    def one(i):
        about = (
            f"  - name: Client number {i}\n    ged: /srv/ged/client-{i}\n    collection_email: c{i}@collecte.example\n"
        )
        folders = "".join((folder if full else bare).format(i=i, n=n) for n in range(5))
        return f"{about}    switched_folders:\n{folders}"

    count = 1400 if full else 2000
    assert len(settings(clients(count, one)).clients) == count


MANY = {
    "keys twice": lambda n: SMALL + "catch_up: true\n" + "catch_up: true\n" * n,
    "unknown keys": lambda n: SMALL + "".join(f"k{i}: 1\n" for i in range(n)),
    "folders twice": lambda n: SMALL.replace("[Achats]", f"[A, {many('A', n)}]"),
}


@pytest.mark.parametrize("count", [99, 100, 101, 3000])
@pytest.mark.parametrize("of", MANY)
def test_of_many_problems_the_first_hundred_and_the_number_of_the_rest_are_told(problems, of, count):
    """30,000 problems would be 18 MB, in the log and in the answer to a reload as well."""
    found = problems(MANY[of](count))
    assert len(found) == min(count, 100) + (count > 100)
    assert [p.line for p in found] == sorted(p.line for p in found)
    assert ("not shown" in found[-1].message) == (count > 100)
    if count > 100:
        assert found[-1].message == f"More problems that are not shown: {count - 100}."


def test_a_number_of_endless_digits_is_text(tmp_path):
    """Its value has thousands of digits, and Python refuses to write it."""
    for text in ("0x" + "f" * 5000, "9" * 5000, many("59", 5000, ":"), "9" * 5000 + ".5", "-" + "9" * 5000):
        assert read(f"a: {text}\n", "x").value == {"a": text}
    assert read("a: 0x10\nb: 1:30\nc: 1.5\n", "x").value == {"a": 16, "b": 90, "c": 1.5}


PLACES = ["/a", "/a/b", "/a/b/c", "/a-b", "/a/bc", "/a.b/c", "/a/", "/b"]


def test_geds_overlap_exactly_when_one_lies_in_the_other():
    """In every order, each GED that lies in another one is refused, and no other. Every client concerned is named."""
    for geds in itertools.permutations(PLACES, 3):
        parsed = read(clients(3, lambda i, g=geds: client(f"C{i}", g[i], f"a{i}@b.example")), "x")
        conflicts.note(parsed, config._resolved)
        below = [f"{ged.rstrip('/')}/" for ged in geds]
        nested = {(i, j) for i, j in itertools.permutations(range(3), 2) if below[i].startswith(below[j])}
        pairs = {(max(pair), min(pair)) for pair in nested}
        lines = {parsed.line(("clients", i)): i for i in range(3)}
        said = {(lines[p.line], lines[int(re.search(r"line (\d+)", p.message)[1])]) for p in parsed.problems}
        assert said <= pairs, geds
        assert set(itertools.chain(*said)) == set(itertools.chain(*pairs)), geds


def by_mounts(**reached):
    """The problems of clients whose GEDs are at these locations: the GED's own, and those mounted below it."""
    names = list(reached)
    parsed = read(clients(len(names), lambda i: client(names[i], f"/srv/{names[i]}", f"a{i}@b.example")), "x")
    found = [conflicts.Reached(f"/srv/{name}", *reached[name]) for name in names]
    conflicts.note(parsed, lambda _: found)
    return [(problem.where, problem.message) for problem in parsed.problems]


DISK, SHARE = b"8:1", b"0:45"


@pytest.mark.parametrize(
    ("martin", "dupont"),
    [
        ([(DISK, b"/ged/martin")], [(DISK, b"/ged/martin")]),
        ([(SHARE, b"/")], [(SHARE, b"/")]),
        ([(DISK, b"/ged/martin")], [(DISK, b"/ged/martin/Achats")]),
        ([(DISK, b"/ged/martin/Achats")], [(DISK, b"/ged/martin")]),
        ([(SHARE, b"/")], [(SHARE, b"/dupont")]),
        ([(DISK, b"/m"), ((SHARE, b"/x"),)], [(SHARE, b"/x")]),
        ([(DISK, b"/m"), ((SHARE, b"/x"),)], [(SHARE, b"/x/y")]),
        ([(SHARE, b"/x")], [(DISK, b"/d"), ((SHARE, b"/x/y"),)]),
    ],
)
def test_geds_that_are_one_directory_by_a_mount_are_refused_with_both_names(martin, dupont):
    """The same directory, one in the other, and one mounted below the other."""
    ((where, message),) = by_mounts(Martin=martin, Dupont=dupont)
    assert where == "clients[1].ged"
    for part in ("'Martin'", "'Dupont'", "by a mount"):
        assert part.lower() in message.lower()


def test_geds_side_by_side_on_one_file_system_are_no_conflict():
    """Nor an empty directory that a sandbox mounts at many places, nor a mount below its own GED."""
    empty = (b"0:20", b"/systemd/inaccessible/dir")
    assert by_mounts(
        Martin=[(DISK, b"/ged/martin"), (empty, (SHARE, b"/a"), (DISK, b"/ged/martin/Achats"))],
        Dupont=[(DISK, b"/ged/martin-2"), (empty, (SHARE, b"/ab"))],
        Durand=[(SHARE, b"/ged/martin")],
        Petit=[None],
        Moreau=[None],
    ) == []  # fmt: skip


def test_geds_that_overlap_by_path_and_by_mount_are_told_once():
    found = [conflicts.Reached("/srv/a", (DISK, b"/a")), conflicts.Reached("/srv/a/b", (DISK, b"/a/b"))]
    parsed = read(clients(2, lambda i: client(f"C{i}", f"/x/{i}", f"a{i}@b.example")), "x")
    conflicts.note(parsed, lambda _: found)
    assert len(parsed.problems) == 1


def test_a_thousand_clients_are_compared_without_each_meeting_each(tmp_path, settings):
    """Each with each other would be half a million comparisons."""
    began = time.monotonic()
    lines = "".join(client(f"C{n}", f"/srv/ged/{n}", f"c{n}@collecte.example") for n in range(1000))
    parsed = read(SMALL.partition("clients:")[0] + "clients:\n" + lines, "x")
    began = time.monotonic()  # reading YAML is PyYAML's pace
    conflicts.note(parsed, config._resolved)
    assert time.monotonic() - began < 30
    assert parsed.problems == []


# -- the secret


def smtp(**more):
    return Smtp(host="smtp.cabinet.example", sender="a@cabinet.example", username="a", **more)


def test_the_password_is_read_from_the_credentials_directory_when_it_is_asked_for(tmp_path, monkeypatch):
    """Not before: a secret that is rotated holds from the next login on. The last line end is not part of it."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    relay = smtp(password_file="smtp-password")
    for secret in ("hunter2", " gëheim "):
        (tmp_path / "smtp-password").write_text(secret + "\n", encoding="utf-8")
        assert password(relay) == secret


def test_an_absolute_password_file_needs_no_credentials_directory(tmp_path):
    """For those who do not run it under systemd."""
    (tmp_path / "secret").write_text("hunter2", encoding="utf-8")
    assert password(smtp(password_file=str(tmp_path / "secret"))) == "hunter2"


def test_the_password_may_come_from_a_variable(monkeypatch):
    """password_env names it."""
    monkeypatch.setenv("RELAY_SECRET", "hunter2")
    assert password(smtp(password_env="RELAY_SECRET")) == "hunter2"


def test_a_relay_without_login_has_no_password():
    """None, and no file is looked for."""
    assert password(Smtp(host="a.example", sender="a@cabinet.example")) is None


def test_a_missing_password_is_a_sentence_with_its_place_and_without_a_secret(tmp_path, monkeypatch):
    """Absent, no directory, not UTF-8, empty, or a variable that is not set or not text."""
    with pytest.raises(UserError, match=r"CREDENTIALS_DIRECTORY.*absolute"):
        password(smtp(password_file="absent"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "latin").write_bytes(b"hunter2\xe9")
    (tmp_path / "empty").write_bytes(b"\n")
    for name, why in [("absent", "No such file"), ("", "Is a directory"), ("latin", "UTF-8"), ("empty", "empty")]:
        relay = smtp(password_file=name or ".")
        with pytest.raises(UserError, match=why) as refused:
            password(relay)
        assert "smtp.password_file" in str(refused.value)
        assert "hunter2" not in repr(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__context__ is None
    monkeypatch.setenv("RELAY_SECRET", "hunter2\udce9")
    for name in ("UNSET_SECRET", "RELAY_SECRET"):
        with pytest.raises(UserError, match=name) as refused:
            password(smtp(password_env=name))
        assert "hunter2" not in repr(refused.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("marker: {suffix: .pdf}", "cannot end a marker's name"),
        ("ignore: ['*']", "would match every name"),
        ("state_dir: /srv/ged/a/state", "inside a GED"),
    ],
)
def test_a_value_that_would_silently_stop_everything_is_refused(tmp_path: Path, line: str, said: str) -> None:
    """A configuration by which nothing would ever leave is a mistake, not a wish."""
    file = tmp_path / "b.yaml"
    file.write_text(
        "smtp: {host: relay.example, sender: a@cabinet.example}\n"
        f"{line}\nclients:\n  - {{name: A, ged: /srv/ged/a, collection_email: a@collecte.example}}\n"
    )
    with pytest.raises(ConfigError, match=said):
        load(file)


def test_an_empty_list_of_clients_and_a_fifo_are_refused(tmp_path: Path) -> None:
    """A half-written file does not switch everything off; a FIFO does not hang the daemon."""
    file = tmp_path / "b.yaml"
    file.write_text("smtp: {host: relay.example, sender: a@cabinet.example}\nclients: []\n")
    with pytest.raises(ConfigError):
        load(file)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path / "fifo")
