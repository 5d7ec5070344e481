"""The names of documents, and the ignored names of the system, an editor, a transfer, or bridged itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.names import ignored_directory, looks_like_marker, verdict

SUFFIX = ".validated.json"


def of(name: str | bytes, *extra: str, marker: str = SUFFIX, hidden: bool = False) -> str | None:
    raw = name if isinstance(name, bytes) else name.encode()
    return verdict(raw, extra=extra, marker=marker, hidden=hidden)


@pytest.mark.parametrize(
    "name",
    [
        "notes~$2.pdf",
        "template.tmp.pdf",
        "4913",
        "tmp",
        "part",
        "x.part1.rar",
        "a~b.pdf",
        "~brouillon.pdf",
        "#12 facture.pdf",
        "thumbs.db.pdf",
        "desktop.ini.txt",
        "Zone.Identifier",
        "facture.validated.pdf",
        "validated.json",
        "x.validated by hand.json",
        "x.invalidated.json",
        "x.validated.json.pdf",
        "Copie de x.pdf",
        "x (1).json",
        "x - Copie.json",
        "partial",
        "x.pdf download",
        "@eaDir",
        b"\xe9t\xe9.pdf",
        "a\nb.pdf",
        *(
            "backup.pdf",
            "original.pdf",
            "bak",
            "orig",
            "Facture_original",
            "Facture.2026_original",
            "Ets.Paul_original",
        ),
        *("x.pdf_originale", "x_original.pdf", "pdf_original", "exiftool_tmp.pdf", "x.bak.pdf", "x.origin"),
        *("Facture 12:30.pdf", "Facture 12\uf03a30.pdf", "Facture 12\uf02230.pdf", "orange.fr:facture 12.pdf"),
        *("M.Dupont:devis.pdf", "Facture 12.5:30.pdf", "x.pdf : copie.pdf", "x.pdf:", "x.pdf: copie.pdf", "12:2fa.pdf"),
        *("2e:x.pdf", "com.apple.pdf", "smartscreen.pdf", "Zone.Identifier.pdf", "x.identifier"),
        *("sync.pdf", "ffs_db", "x.ffs_db.pdf", "nextcloud", "x.nextcloud.pdf", "owncloud.pdf", "syncthing.pdf"),
        *("x (conflicted copy 2026-11-24 081203).pdf", "x (SFConflict a@b.example 2026-11-24).pdf"),
        *("Desktop.pdf", "Desktop DB.pdf", "Icon", "Icon.pdf", "Icones:0d.pdf", "picasa.pdf", "hpothb07.pdf"),
        *("@SynoResource", "SynoResource.pdf", "x@SynoResource.pdf", "a@synology.example.pdf"),
        *("WRD0001.doc", "~WRITER.doc", "~wr.pdf", "x.dwg", "x.doc", "x.asdf", "__jb_tmp__.pdf", "qpdf-orig.pdf"),
    ],
)
def test_a_name_that_resembles_an_ignored_one_is_a_documents_name(name: str | bytes) -> None:
    assert of(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".x", "hidden"),
        (".~lock.x#", "temporary"),
        ("~$cture.docx", "temporary"),
        ("x.tmp", "temporary"),
        ("X.TMP", "temporary"),
        ("~WRL0001.tmp", "temporary"),
        ("x.pdf.part", "temporary"),
        ("x.pdf.partial", "temporary"),
        ("x.pdf.filepart", "temporary"),
        ("x.pdf.CRDOWNLOAD", "temporary"),
        ("x.pdf.!ut", "temporary"),
        ("x.pdf.download", "temporary"),
        ("x.pdf.upload", "temporary"),
        ("x.swp", "temporary"),
        ("x.pdf~", "temporary"),
        ("x.docx.sb-1a2b3c4d-AbCdEf", "temporary"),
        ("a\nb.tmp", "temporary"),
        (b"\xe9.tmp", "temporary"),
        ("Thumbs.db", "system"),
        ("THUMBS.DB", "system"),
        ("Desktop.ini", "system"),
        (".DS_Store", "system"),
        ("._x.pdf", "system"),
        ("x.pdf:Zone.Identifier", "system"),
        ("x.pdf:zone.identifier:$DATA", "system"),
        ("x.pdf\uf03aZone.Identifier", "system"),
        *((name, "temporary") for name in ("x.bak", "x.pdf.BAK", "x.orig", "x.pdf.orig", "Backup of x.wbk", "x.xlk")),
        *((name, "temporary") for name in ("x.pdf_original", "X.JPG_original", "x.heic_original", "x.tiff_original")),
        *((name, "temporary") for name in ("x.pdf_exiftool_tmp", "x.pdf.~qpdf-orig", "x.pdf.~qpdf-temp#")),
        *((name, "temporary") for name in ("x.xml___jb_tmp___", "x.xml___jb_old___", "~WRD0001.doc", "~WRA0023.wbk")),
        *((name, "temporary") for name in ("x.pdf.1a2b.ffs_tmp", "x.pdf.FFS_TMP", "x.pdf.nextcloud", "x.pdf.owncloud")),
        *((name, "temporary") for name in ("x.pdf.1a2b3c4d.partial", "~syncthing~x.pdf", "x.pdf.!sync", "x.pdf.rslsf")),
        *(
            (name, "temporary")
            for name in ("x.pdf.downloading", "x.pdf.lftp-pget-status", "x.laccdb", "x.idlk", "x.dwl2")
        ),
        *((name, "system") for name in ("sync.ffs_db", "sync.ffs_lock", "sync.Del.ffs_lock", "Job.ffs_batch")),
        *((name, "system") for name in ("x.pdf:stream", "x.pdf:copie.pdf", "x.PDF:a:$DATA", "scan.jpg::$DATA")),
        *((name, "system") for name in ("x.pdf\uf03astream", "x.pdf\uf022stream", "x.docx\uf022a\uf022$DATA")),
        *((name, "system") for name in ("x.pdf:AFP_AfpInfo", "x.pdf:com.apple.quarantine", "x:AFP_Resource")),
        *((name, "system") for name in ("facture:com.dropbox.attributes", "x:SmartScreen", "Thumbs.db:encryptable")),
        *(
            (name, "system")
            for name in ("Icon\r", "Icon\uf00d", "Icon:0d", "Desktop DB", "Desktop DF", "csync_journal.db")
        ),
        *(
            (name, "system")
            for name in ("x.pdf@SynoEAStream", ".DS_Store@SynoResource", "Picasa.ini", "ZbThumbnail.info")
        ),
        *((name, "hidden") for name in (":2ex.pdf", ":2eDS_Store", ":2E_x.pdf", "\uf0222ex.pdf", ".sync_1a2b.db")),
        *((name, "hidden") for name in (".x.pdf.~1a2b", ".nextcloudsync.log", ".dropbox", ".x.pdf.AbCdEf", ".nfs0001")),
    ],
)
def test_a_name_that_a_program_leaves_behind_is_ignored(name: str | bytes, reason: str) -> None:
    assert of(name) == reason


@pytest.mark.parametrize(
    "name",
    [
        "x.pdf.validated.json",
        "X.PDF.VALIDATED.JSON",
        "x.validated-2.json",
        "x.validated (1).json",
        "x.validated(1).json",
        "x.validated - Copie.json",
        "x.validated - Copie (2).json",
        "x.validated - Copy.json",
        "x.validated-2 - Copie - Copie.json",
        "x.validated copie 2.json",
        "x.validated (copie).json",
        "x.validated (3rd copy).json",
        "x.validated (autre copie).json",
        "x.validated (conflicted copy 2026-11-24 081203).json",
        "x.validated.sync-conflict-20261124-081203-ABCDEFG.json",
        "Copie de x.pdf.validated.json",
        "x.pdf.validated.json.validated.json",
    ],
)
def test_a_marker_and_a_copy_of_one_are_no_documents(name: str) -> None:
    assert of(name) == "marker"


def test_a_hidden_marker_is_a_marker() -> None:
    assert of(".x.validated.json", hidden=True) == "marker"
    assert of(".x.validated-2.json", hidden=True) == "marker"
    assert of("x.validated.json", hidden=True) == "marker"
    assert of(".x.validated.json") == "hidden"


@pytest.mark.parametrize("suffix", [".envoyé.json", ".ok", ".sent.ok.txt", "-transmis", ".a+b.json"])
def test_a_configured_suffix_makes_the_same_markers(suffix: str) -> None:
    stem, dot, extension = suffix.rpartition(".")
    for copy in ("", "-2", " (1)", " - Copie"):
        name = "x.pdf" + (stem + copy + dot + extension if stem else suffix + copy)
        assert of(name, marker=suffix) == "marker", name
    assert of("Copie de x.pdf" + suffix, marker=suffix) == "marker"
    assert of("x.pdf", marker=suffix) is None
    assert of("x.validated.json", marker=suffix) is None


def test_a_suffix_matches_in_composed_and_in_decomposed_form() -> None:
    assert of("x.envoye\u0301.json", marker=".envoyé.json") == "marker"


def test_patterns_of_the_configuration_are_added() -> None:
    assert of("x.old", "*.old") == "ignored by configuration"
    assert of("x.old.pdf", "*.old") is None
    assert of("été.pdf", "e\u0301t?.pdf") == "ignored by configuration"
    assert of(b"\xe9.old", "*.old") == "ignored by configuration"


@given(st.text(st.characters(categories=["L", "N"]), min_size=1), st.sampled_from(["pdf", "jpg", "xml", "zip"]))
def test_every_ordinary_name_is_a_document(stem: str, extension: str) -> None:
    assert of(f"{stem}.{extension}") is None


@given(st.binary(min_size=1, max_size=255))
def test_no_name_stops_the_verdict(name: bytes) -> None:
    of(name, "*.old")
    assert ignored_directory(name) in (None, "hidden", "system", "temporary")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("@eaDir", "system"),
        (".@__thumb", "system"),
        ("#recycle", "system"),
        (".Trash-1000", "system"),
        (".snapshot", "system"),
        (".stversions", "system"),
        ("$RECYCLE.BIN", "system"),
        ("$Recycle.Bin", "system"),
        ("System Volume Information", "system"),
        (".git", "hidden"),
        ("x.pdf.download", "temporary"),
        ("Achats", None),
        ("2026.11", None),
        ("recycle", None),
        ("Recycler", None),
        ("download", None),
        ("notes~", None),
        *(
            (name, "system")
            for name in ("Network Trash Folder", "TheVolumeSettingsFolder", "Temporary Items", "DfsrPrivate")
        ),
        *((name, "system") for name in ("FOUND.000", "@sharebin", "_gsdata_", "resource.frk", "@Recently-Snapshot")),
        *((name, "temporary") for name in ("RecycleBin~1a2b.ffs_tmp", "(A Document Being Saved By Preview 2)")),
        *((name, "hidden") for name in (".AppleDouble", ":2eAppleDouble", ".tmp.drivedownload", ".tmp.driveupload")),
        *((name, "hidden") for name in (".sync", ".dropbox.cache", ".SynologyWorkingDirectory", ".zfs", ".streams")),
        *((name, None) for name in ("Found", "found.pdf", "(A Document)", "Temporary", "Ressources", "x.bak", "2e:x")),
    ],
)
def test_the_directories_of_a_system_hold_no_documents(name: str, reason: str | None) -> None:
    assert ignored_directory(name.encode()) == reason


def test_a_directory_may_be_ignored_by_the_configuration() -> None:
    assert ignored_directory(b"Brouillons", ["Brouillons"]) == "ignored by configuration"


MARKER = {
    "status": "validated",
    "document": 'Facture "été" \\ n°12.pdf',
    "client": "Boulangerie",
    "collection_email": "b@collecte.example",
    "sha256": "0" * 64,
    "size": 48213,
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_marker_is_known_by_its_content(indent: int | None, ascii_only: bool) -> None:
    content = json.dumps(MARKER, indent=indent, ensure_ascii=ascii_only).encode()
    assert looks_like_marker(content)
    assert looks_like_marker(b"\xef\xbb\xbf" + content)


def test_a_marker_is_known_by_its_head_when_a_long_name_fills_it() -> None:
    content = json.dumps(MARKER | {"document": "é" * 127 + "\x01" * 100}).encode()
    assert looks_like_marker(content[:1024])


def test_another_programs_json_is_a_document() -> None:
    assert not looks_like_marker(b'{"status": "validated", "document": "12", "amount": 3}')
    assert not looks_like_marker(b'{"status": "validated", "invoice": "12"}')
    assert not looks_like_marker(b'{"status": "paid", "document": "12", "client": "x"}')
    assert not looks_like_marker(b'{"status": "validated"}')
    assert not looks_like_marker(b"%PDF-1.7")
    assert not looks_like_marker(b"")


@given(st.binary(max_size=1024))
def test_no_content_stops_the_look_for_a_marker(head: bytes) -> None:
    assert not looks_like_marker(head)
