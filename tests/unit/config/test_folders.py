"""The place of a directory: which line says its address, which names `*` matches, and several threads at once."""

from __future__ import annotations

import itertools

import pytest

from bridged.config import SwitchedFolders, components, folders, load

CONFIG = """
smtp: {host: localhost, security: plain, sender: factures@cabinet.example}
clients:
  - {name: Martin, ged: /srv/ged/martin, collection_email: martin@collecte.example, switched_folders: [Achats]}
"""
FEW = 10


class Interrupted(bytes):
    """A directory's path. Another thread has its turn when this path is hashed for the n-th time."""

    turns: list

    def __hash__(self):
        turn = self.turns.pop(0) if self.turns else None
        if turn is not None:
            turn()
        return super().__hash__()


@pytest.fixture
def switched(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_REMEMBERED", FEW)
    file = tmp_path / "bridged.yaml"
    file.write_text(CONFIG)
    return SwitchedFolders(load(file).clients)


@pytest.mark.parametrize("number", range(4))
def test_a_thread_that_fills_the_memory_of_places_leaves_another_ones_answer(switched, number):
    """Otherwise the other thread, between its question and its answer, would raise a KeyError."""
    directory = Interrupted(b"/srv/ged/martin/Achats/2026")
    directory.turns = []
    expected = switched.place(directory)
    assert expected is not None

    def fill():
        for n in range(FEW + 1):
            switched.place(b"/srv/ged/martin/Achats/%d" % n)

    directory.turns = [*[None] * number, fill]
    assert switched.place(directory) == expected
    switched.place(directory)
    assert not directory.turns


GED = "/srv/ged/martin"


@pytest.fixture
def places(tmp_path):
    """The address of each directory under lines of `switched_folders`, or None where the bridge is off."""

    def of(lines, *directories, ignore="[]"):
        file = tmp_path / "bridged.yaml"
        file.write_text(CONFIG.replace("clients:", f"ignore: {ignore}\nclients:").replace("[Achats]", f"[{lines}]"))
        settings = load(file)
        switched = SwitchedFolders(settings.clients, settings.ignore)
        found = [switched.place(f"{GED}/{one}".rstrip("/").encode()) for one in directories]
        return [place.collection_email.partition("@")[0] if place else None for place in found]

    return of


def line(path, address="", **more):
    """One line, with an address of its own."""
    keys = {"path": f"'{path}'", **({"collection_email": f"{address}@collecte.example"} if address else {}), **more}
    return "{" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}"


SYSTEMS = (
    "#recycle",
    "@eaDir",
    ".snapshot",
    ".Trash-1000",
    "$RECYCLE.BIN",
    ".git",
    ".cache",
    "x.pdf.download",
    "Vieux",
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_star_does_not_match_a_directory_with_an_ignored_name(places, name):
    """At its end, at its beginning and in its middle; the name beside it, which is a firm's, is matched."""
    asked = [f"{name}/Achats", f"{name}/Achats/2026", "Site/Achats"]
    assert places("'*/Achats'", *asked, ignore="[Vieux]") == [None, None, "martin"]
    assert places("'Clients/*'", f"Clients/{name}", "Clients/A", ignore="[Vieux]") == [None, "martin"]
    assert places("'Clients/*/Achats'", f"Clients/{name}/Achats", ignore="[Vieux]") == [None]


@pytest.mark.parametrize("pattern", ["#rec*", "*.snapshot", ".*"])
def test_a_component_with_a_star_matches_no_ignored_name_however_it_is_written(places, pattern):
    assert places(f"'{pattern}'", "#recycle", ".snapshot") == [None, None]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_component_written_in_full_names_its_directory_on_purpose(places, name):
    assert places(f"'{name}/Achats'", f"{name}/Achats", f"{name}/Achats/2026", ignore="[Vieux]") == ["martin"] * 2
    assert places(f"'*/{name}'", f"Site/{name}", ignore="[Vieux]") == ["martin"]


def test_an_ignored_name_below_a_line_stays_off(places):
    assert places("Achats, '*'", "Achats/#recycle", "Achats/a/.git/b", "Achats/a") == [None, None, "martin"]


LINES = [line("Exercice */Achats", "any"), line("Exercice 2026/Achats", "special"), line("Exercice 2026", "year")]


@pytest.mark.parametrize("lines", list(itertools.permutations(LINES)))
def test_the_line_in_full_says_the_address_before_one_with_a_star(places, lines):
    """The deeper line before the shallower; the order in the file does not count."""
    asked = ["Exercice 2026/Achats", "Exercice 2026/Achats/mai", "Exercice 2025/Achats", "Exercice 2026/Notes"]
    assert places(", ".join(lines), *asked) == ["special", "special", "any", "year"]


STARS = [line("*/Achats", "all"), line("Exercice */Achats", "some"), line("Exercice 2026/*", "year"), line(".", "ged")]


@pytest.mark.parametrize("lines", list(itertools.permutations(STARS)))
def test_of_two_lines_with_a_star_the_one_that_says_more_comes_first(places, lines):
    asked = ["Exercice 2026/Achats", "Exercice 2025/Achats", "2025/Achats", "Exercice 2025"]
    assert places(", ".join(lines), *asked) == ["year", "some", "all", "ged"]


def test_a_deep_line_with_a_star_is_used_below_a_shallow_one_in_full(places):
    """Otherwise its address would never be used."""
    lines = f"{line('Achats', 'shallow')}, {line('Achats/*/Scans', 'scans')}"
    assert places(lines, "Achats/mai/Scans", "Achats/mai") == ["scans", "shallow"]


def test_an_exclusion_of_one_line_leaves_on_a_directory_that_another_line_covers(places):
    """A directory is on when any line covers it: the exclusion is its own line's."""
    lines = [line(".", "ged"), line("Achats", "achats", exclude="[Brouillons]")]
    asked = ["Achats", "Achats/Brouillons", "Achats/Brouillons/mai", "Notes"]
    for order in itertools.permutations(lines):
        assert places(", ".join(order), *asked) == ["achats", "ged", "ged", "ged"]


def test_an_excluded_directory_is_on_where_a_line_of_its_own_names_it(places):
    lines = f"{line('Achats', 'achats', exclude='[Brouillons]')}, {line('Achats/Brouillons/Bons', 'bons')}"
    asked = ["Achats/Brouillons", "Achats/Brouillons/Bons", "Achats/Brouillons/Bons/mai"]
    assert places(lines, *asked) == [None, "bons", "bons"]


def test_a_directory_is_off_where_each_line_that_covers_it_excludes_it(places):
    lines = f"{line('.', 'ged', exclude='[Achats/Brouillons]')}, {line('Achats', 'achats', exclude='[Brouillons]')}"
    assert places(lines, "Achats/Brouillons", "Achats/Brouillons/mai") == [None, None]


TREE = [
    "/".join(parts)
    for depth in range(5)
    for parts in itertools.product(("Achats", "Brouillons", "2026", ".git"), repeat=depth)
]


def test_a_directory_asked_after_the_one_above_has_the_same_place_as_alone(places):
    """The place of the directory above is taken over only where no line can tell the two apart."""
    texts = [line("."), line("Achats", "a", exclude="[Brouillons]"), line("*/2026", "y"), line("Achats/*/2026", "d")]
    for lines in itertools.chain.from_iterable(itertools.combinations(texts, n) for n in (1, 2, 3, 4)):
        joined = ", ".join(lines)
        assert places(joined, *TREE) == places(joined, *reversed(TREE))[::-1], joined


def test_a_component_with_brackets_or_a_question_mark_is_taken_as_it_is_written():
    assert [one.admits(b"[2026]?") for one in components("[2026]?/2/[2026]*")] == [True, False, True]
