"""The mails of alerts and digests, in French and in English: the event, its time, the thing, and the remedy. Pure.

Names come from files and relays. Each is made readable, put on one line, and cut where it is long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final, Literal

from bridged.alerts.digest import Digest
from bridged.alerts.events import Kind
from bridged.alerts.ledger import Condition
from bridged.model import readable

Language = Literal["fr", "en"]
LINES: Final = 50  # of one list; the rest is told as a number
_LONGEST: Final = 300  # characters of one name or reason


@dataclass(frozen=True, slots=True)
class Letter:
    """The subject and the text of a mail to people."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one kind of alert."""

    subject: str
    happened: str
    remedy: str


ALERTS: Final[dict[Language, dict[Kind, Words]]] = {
    "en": {
        Kind.ACCOUNT: Words(
            "Nothing is sent: the relay refuses the account",
            "The relay refuses the login or the sender, or cannot be trusted. Every document waits; none is lost.",
            "Correct the password at its place, or smtp: in the configuration, and test it: bridged check --smtp\n"
            "Then let the relay be tried at once: bridged reload",
        ),
        Kind.QUOTA: Words(
            "Nothing is sent for now: the daily quota is used up",
            "The account has sent as much as its provider allows in a day. Every document waits; none is lost."
            " Sending goes on by itself when the provider allows it again.",
            "If this happens often, ask the provider for a larger quota.\nWhat waits: bridged documents --state queued",
        ),
        Kind.SHARE: Words(
            "A share cannot be reached",
            "These folders cannot be reached. New documents there are not noticed; nothing is concluded from it, and"
            " what was queued waits.",
            "Mount the share again, or give the user of bridged the right to read the folder. It goes on by itself.\n"
            "How each folder is: bridged status",
        ),
        Kind.STATE: Words(
            "A part of bridged fails",
            "A part of the daemon cannot go on. Where the disk of the state directory is full or cannot be written,"
            " no further document is taken or sent; none is lost.",
            "Make room on that disk, or make it writable; it goes on by itself.\n"
            "The details: journalctl -u bridged -p err",
        ),
        Kind.DISK: Words(
            "Markers cannot be written: a disk is full or read-only",
            "Documents were sent, but their markers cannot be written beside them. They are not sent again.",
            "Make room on the share, or make it writable. The markers are tried again at each sweep.",
        ),
        Kind.ADDRESS: Words(
            "A collection email is refused",
            "The relay refuses the collection email itself. The documents for it are held.",
            "Correct collection_email: in the configuration, or have the address opened by the OCR tool; then:"
            " bridged reload\nThen send what is held: bridged documents --state held, bridged release ID",
        ),
        Kind.WATCHES: Words(
            "New documents are noticed late: the watch limit is reached",
            "The system has no more inotify watches for bridged. Every document is still sent, but only when a sweep"
            " finds it.",
            "Raise fs.inotify.max_user_watches (and max_user_instances) with sysctl, and restart bridged.\n"
            "What is needed: bridged check",
        ),
        Kind.CONFIGURATION: Words(
            "bridged does not start: its configuration is refused",
            "The configuration has these problems, and bridged does not run: no document is sent, and what is deposited"
            " until it runs counts as missed.",
            "Correct the file and test it: bridged check\nThen start it: systemctl start bridged",
        ),
    },
    "fr": {
        Kind.ACCOUNT: Words(
            "Plus aucun envoi : le relais refuse le compte",
            "Le relais refuse l'identification ou l'expéditeur, ou n'est pas digne de confiance. Tous les documents"
            " attendent ; aucun n'est perdu.",
            "Corrigez le mot de passe là où il se trouve, ou smtp: dans la configuration, et vérifiez :"
            " bridged check --smtp\nPuis faites essayer le relais aussitôt : bridged reload",
        ),
        Kind.QUOTA: Words(
            "Envois suspendus : le quota journalier est épuisé",
            "Le compte a envoyé tout ce que son fournisseur permet en un jour. Tous les documents attendent ; aucun"
            " n'est perdu. Les envois reprennent d'eux-mêmes dès que le fournisseur le permet.",
            "Si cela se répète, demandez au fournisseur un quota plus élevé.\n"
            "Ce qui attend : bridged documents --state queued",
        ),
        Kind.SHARE: Words(
            "Un partage est injoignable",
            "Ces dossiers sont injoignables. Les nouveaux documents n'y sont pas vus ; rien n'en est conclu, et ce qui"
            " était en file attend.",
            "Remontez le partage, ou donnez à l'utilisateur de bridged le droit de lire le dossier. La suite se fait"
            " d'elle-même.\nL'état de chaque dossier : bridged status",
        ),
        Kind.STATE: Words(
            "Une partie de bridged est en échec",
            "Une partie du service ne peut pas continuer. Si le disque du répertoire d'état est plein ou interdit en"
            " écriture, plus aucun document n'est pris ni envoyé ; aucun n'est perdu.",
            "Libérez de la place sur ce disque, ou rendez-le accessible en écriture ; la suite se fait d'elle-même.\n"
            "Le détail : journalctl -u bridged -p err",
        ),
        Kind.DISK: Words(
            "Marqueurs impossibles à écrire : disque plein ou en lecture seule",
            "Des documents sont partis, mais leur marqueur ne peut pas être écrit à côté d'eux. Ils ne sont pas envoyés"
            " une seconde fois.",
            "Libérez de la place sur le partage, ou rendez-le accessible en écriture. Les marqueurs sont tentés de"
            " nouveau à chaque balayage.",
        ),
        Kind.ADDRESS: Words(
            "Une adresse de collecte est refusée",
            "Le relais refuse l'adresse de collecte elle-même. Les documents qui lui sont destinés sont retenus.",
            "Corrigez collection_email: dans la configuration, ou faites ouvrir l'adresse par l'outil de collecte ;"
            " puis : bridged reload\nEnvoyez ensuite ce qui est retenu : bridged documents --state held,"
            " bridged release ID",
        ),
        Kind.WATCHES: Words(
            "Documents vus avec retard : limite de surveillance atteinte",
            "Le système n'a plus de surveillances inotify pour bridged. Chaque document part quand même, mais seulement"
            " quand un balayage le trouve.",
            "Augmentez fs.inotify.max_user_watches (et max_user_instances) par sysctl, puis redémarrez bridged.\n"
            "Ce qu'il faut : bridged check",
        ),
        Kind.CONFIGURATION: Words(
            "bridged ne démarre pas : sa configuration est refusée",
            "La configuration a ces défauts, et bridged ne tourne pas : aucun document ne part, et ce qui est déposé"
            " d'ici là comptera comme manqué (missed).",
            "Corrigez le fichier et vérifiez-le : bridged check\nPuis démarrez : systemctl start bridged",
        ),
    },
}

# The words around these, by the same keys in both languages.
PHRASES: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "time": "%Y-%m-%d %H:%M",
        "day": "%Y-%m-%d",
        "since": ", since {when}",
        "affected": "Affected:",
        "remedy": "What to do:",
        "more": "… and {count} more",
        "and": " (and {count} more)",
        "once": "This is told once, until it is over and happens again.",
        "delayed": "Delayed",
        "late": "This mail could not be sent when it was written, {when}, and what it says may be over by now."
        " How it is now: bridged status",
        "digest": "Daily digest",
        "held": "Held for a person (bridged documents --state held, then bridged release ID):",
        "waiting": "On their way for more than an hour (bridged status):",
        "missed": "Deposited while bridged was stopped, and not sent (bridged documents --state missed,"
        " then bridged send PATH):",
        "silent": "Clients of whom nothing has come for unusually long (is the scanner or the share all right?):",
        "last": "{client}: last deposit on {day}; the longest pause before was {longest} days",
        "count": "{client}: {count}",
        "deposited": "{client}: {count}, since {when}",
        "reasoned": "{client}: {count} ({reason})",
        "subject_held": "{count} held",
        "subject_waiting": "{count} late",
        "subject_missed": "{count} missed",
        "subject_silent": "{count} silent",
        "no_reason": "no reason given",
    },
    "fr": {
        "time": "%d/%m/%Y %H:%M",
        "day": "%d/%m/%Y",
        "since": ", depuis le {when}",
        "affected": "Sont concernés :",
        "remedy": "Que faire :",
        "more": "… et {count} de plus",
        "and": " (et {count} de plus)",
        "once": "Ce message n'est envoyé qu'une fois, tant que cela dure.",
        "delayed": "Différé",
        "late": "Ce message, écrit le {when}, n'a pas pu partir à ce moment, et ce qu'il dit est peut-être terminé."
        " La situation actuelle : bridged status",
        "digest": "Résumé du jour",
        "held": "Retenus pour une personne (bridged documents --state held, puis bridged release ID) :",
        "waiting": "En route depuis plus d'une heure (bridged status) :",
        "missed": "Déposés pendant que bridged était arrêté, et non envoyés (bridged documents --state missed,"
        " puis bridged send CHEMIN) :",
        "silent": "Clients dont rien n'est venu depuis inhabituellement longtemps (le scanner ou le partage"
        " vont-ils bien ?) :",
        "last": "{client} : dernier dépôt le {day} ; la plus longue pause jusque-là était de {longest} jours",
        "count": "{client} : {count}",
        "deposited": "{client} : {count}, depuis le {when}",
        "reasoned": "{client} : {count} ({reason})",
        "subject_held": "retenus : {count}",
        "subject_waiting": "en retard : {count}",
        "subject_missed": "manqués : {count}",
        "subject_silent": "silencieux : {count}",
        "no_reason": "sans motif",
    },
}


def alert(conditions: Sequence[Condition], language: Language, zone: tzinfo | None = None) -> Letter:
    """The mail about conditions of one kind. `zone` None is the machine's own."""
    words, phrases = ALERTS[language][conditions[0].raised.kind], PHRASES[language]
    first = conditions[0].raised
    who = short(first.client or first.what)
    subject = words.subject + (f"{_colon(language)} {who}" if who and first.kind is not Kind.CONFIGURATION else "")
    if who and len(conditions) > 1 and first.kind is not Kind.CONFIGURATION:
        subject += phrases["and"].format(count=len(conditions) - 1)
    affected = _listed((_line(c, language, zone) for c in conditions), phrases)
    text = [words.happened, "", phrases["affected"], *affected, "", phrases["remedy"], words.remedy]
    return Letter(f"[bridged] {subject}", "\n".join([*text, "", phrases["once"]]) + "\n")


def digest(found: Digest, language: Language, zone: tzinfo | None = None) -> Letter:
    """The mail of a digest that is not empty. `zone` None is the machine's own."""
    phrases = PHRASES[language]
    say = {name: phrases[name].format for name in ("last", "count", "deposited", "reasoned")}
    parts: dict[str, tuple[int, list[str]]] = {
        "held": (
            sum(count for *_, count in found.held),
            [
                say["reasoned"](client=short(client), count=count, reason=short(reason) or phrases["no_reason"])
                for client, reason, count in found.held
            ],
        ),
        "waiting": (
            sum(count for _, count, _ in found.late),
            [
                say["deposited"](client=short(client), count=count, when=when(since, language, zone))
                for client, count, since in found.late
            ],
        ),
        "missed": (
            sum(count for _, count in found.missed),
            [say["count"](client=short(client), count=count) for client, count in found.missed],
        ),
        "silent": (
            len(found.silent),
            [
                say["last"](client=short(s.client), day=s.last.strftime(phrases["day"]), longest=s.longest)
                for s in found.silent
            ],
        ),
    }
    told = {name: part for name, part in parts.items() if part[1]}
    counts = ", ".join(phrases[f"subject_{name}"].format(count=count) for name, (count, _) in told.items())
    blocks = ["\n".join([phrases[name], *_listed(lines, phrases)]) for name, (_, lines) in told.items()]
    return Letter(f"[bridged] {phrases['digest']}{_colon(language)} {counts}", "\n\n".join(blocks) + "\n")


def late(letter: Letter, written: float, language: Language, zone: tzinfo | None = None) -> Letter:
    """A letter that leaves later than it was written. Its first words say so, because it speaks of that time as now."""
    phrases = PHRASES[language]
    mark = f"[bridged] {phrases['delayed']}{_colon(language)} "
    remark = phrases["late"].format(when=when(written, language, zone))
    return Letter(mark + letter.subject.removeprefix("[bridged] "), f"{remark}\n\n{letter.text}")


def when(at: float, language: Language, zone: tzinfo | None = None) -> str:
    """An instant as the local clock showed it, with its offset from UTC. `at` is seconds since the epoch."""
    local = datetime.fromtimestamp(at, zone).astimezone(zone)
    offset = local.strftime("%z")
    return f"{local.strftime(PHRASES[language]['time'])} (UTC{offset[:3]}:{offset[3:5]})"


def short(text: str) -> str:
    """A name or reason as one readable line of at most 300 characters."""
    plain = readable(text.encode("utf-8", "replace"))
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def _line(condition: Condition, language: Language, zone: tzinfo | None) -> str:
    raised = condition.raised
    named = _join(f"{_colon(language)} ", short(raised.client), short(raised.what))
    why = short(raised.why)
    if named and why:
        why = f"({why})"
    if raised.kind is Kind.CONFIGURATION:
        return why
    since = PHRASES[language]["since"].format(when=when(condition.since, language, zone))
    return _join(" ", named, why) + since


def _join(between: str, *parts: str) -> str:
    return between.join(dict.fromkeys(part for part in parts if part))


def _colon(language: Language) -> str:
    return " :" if language == "fr" else ":"


def _listed(lines: Iterable[str], phrases: dict[str, str]) -> list[str]:
    every = [f"- {line}" for line in lines]
    more = len(every) - LINES
    return every if more <= 0 else [*every[:LINES], phrases["more"].format(count=more)]
