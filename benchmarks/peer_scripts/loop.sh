#!/bin/bash
# The bridge as people write it: inotifywait, a mail put together by hand, msmtp, a marker.
# loop.sh DIRECTORY PORT
inotifywait -m -r -e close_write -e moved_to --format '%w%f' "$1" | while read -r document; do
    case "$document" in *.sent) continue ;; esac
    name=$(basename "$document")
    {
        printf 'From: factures@cabinet.example\nTo: c0@collecte.example\nSubject: %s\nMIME-Version: 1.0\n' "$name"
        printf 'Content-Type: multipart/mixed; boundary="=_bridge"\n\n--=_bridge\nContent-Type: text/plain\n\n'
        printf 'A document.\n--=_bridge\nContent-Type: application/octet-stream; name="%s"\n' "$name"
        printf 'Content-Disposition: attachment; filename="%s"\nContent-Transfer-Encoding: base64\n\n' "$name"
        base64 "$document"
        printf '%s\n' '--=_bridge--'
    } | msmtp --host=127.0.0.1 --port="$2" --auth=off --tls=off --from=factures@cabinet.example c0@collecte.example &&
        touch "$document.sent"
done
