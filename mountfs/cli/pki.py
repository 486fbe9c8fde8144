"""mountfs pki: the certificates of a cluster, made, handed out, renewed, shown."""

import argparse
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from mountfs.cli import show
from mountfs.errors import Fault, FsError

# What makes certificates takes a tenth of a second to import, which no other command should pay.
if TYPE_CHECKING:
    from cryptography import x509

    from mountfs.tls.store import Issued, Store

SUMMARY = "the certificates of a cluster: make, hand out, renew, show"
DESCRIPTION = """\
Make and keep the certificates by which the nodes and clients of one cluster know each other.  With
them, nobody without one reaches any port of the cluster.

A cluster has an authority of its own: a directory, DIR below.  It is needed only to make
certificates, never to run the cluster.  Who has it can become anybody in the cluster: keep it where
few can read it, and keep a copy.
"""
EPILOG = """\
examples:
  mountfs pki init /root/pki                          once: the authority of a new cluster
  mountfs pki issue /root/pki node n1                 an identity for a node
  rsync -a /root/pki/issued/n1/ n1:/etc/mountfs/      hand it out; also when it is renewed
  mountfs pki issue /root/pki client alice            an identity for a mount
  mountfs pki renew /root/pki                         what expires within 30 days, from cron
  mountfs pki show /root/pki                          what there is, and when it expires

an identity is a directory with two files:
  ca.crt    whom to trust: the authority (and, while it is being replaced, the one before it)
  own.pem   the certificate and its private key, mode 0600; both in one file, so that they always
            belong together.  A running process takes a new one without a restart

exit status: 0 done, all well; 1 failed, or something shown is not well; 2 wrong call
"""

EXPIRING_IN_DEFAULT: Final = timedelta(days=30)
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class _Action:
    name: str
    summary: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in ACTIONS:
        one = actions.add_parser(
            action.name,
            help=action.summary,
            description=action.description,
            epilog=action.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_arguments(one)
        one.add_argument("--json", action="store_true", help="a JSON object")
        one.set_defaults(act=action.run, action_parser=one)


def run(arguments: argparse.Namespace) -> int:
    status: int = arguments.act(arguments)
    return status


# --- init


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="made, if it is not there")
    parser.add_argument(
        "--cluster", metavar="ID", help="32 hex digits; default: those of a new cluster"
    )


def _init(arguments: argparse.Namespace) -> int:
    from mountfs.tls.store import Store

    directory = arguments.directory
    cluster = secrets.token_hex(16) if arguments.cluster is None else arguments.cluster
    store = Store.create(directory, cluster, _now())
    end = store.authority.certificate.not_valid_after_utc
    if arguments.json:
        show.print_json(
            {"cluster": cluster, "directory": str(directory), "expires_at": end.isoformat()}
        )
        return show.EXIT_OK
    console = show.out()
    console.print(
        show.facts(
            [
                ("authority", show.name(str(directory))),
                ("of cluster", cluster),
                ("expires", _ending(end, _now())),
            ]
        )
    )
    console.print("\nKeep a copy of that directory, and keep others away from it.  Then:")
    console.print(f"  mountfs pki issue {show.name(str(directory))} node NAME")
    return show.EXIT_OK


# --- issue


def _issue_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="the authority")
    parser.add_argument("kind", choices=("node", "client"), help="node: serves; client: mounts")
    parser.add_argument("name", metavar="NAME", help="of that node or client, once in a cluster")
    parser.add_argument(
        "--host",
        dest="hosts",
        action="append",
        metavar="HOST",
        help="a name or address of the node, for programs that check those; may be repeated; "
        "default: this machine's name, localhost, 127.0.0.1 and ::1",
    )
    parser.add_argument("--days", type=_days, metavar="N", help="until it expires; default: 365")
    parser.add_argument("--out", type=Path, metavar="OUT", help="put a copy there, to hand it out")


def _issue(arguments: argparse.Namespace) -> int:
    from mountfs.tls import authority
    from mountfs.tls.store import Store

    kind, hosts = authority.Kind(arguments.kind), arguments.hosts
    if kind is authority.Kind.CLIENT and hosts:
        raise FsError(Fault.INVALID, "--host is for nodes: nobody connects to a client")
    if kind is authority.Kind.NODE and hosts is None:
        hosts = _own_hosts()
    for host in hosts or ():
        authority.check_host(host)
    lifetime = arguments.days or authority.LEAF_LIFETIME
    store = Store(arguments.directory)
    with store.locked():
        made = store.issue(
            kind, arguments.name, _now(), hosts=hosts or (), lifetime=lifetime, out=arguments.out
        )
    _warn_of_the_end(store)
    if arguments.json:
        show.print_json(_issued_as_json(made, arguments.out))
        return show.EXIT_OK
    assert made.certificate is not None, made.problem
    place = arguments.out or made.directory
    console = show.out()
    console.print(show.facts(_facts(made.certificate, place)))
    console.print("\nCopy what is in that directory to where it is used, for example:")
    console.print(f"  rsync -a {show.name(str(place))}/ HOST:/etc/mountfs/")
    return show.EXIT_OK


def _own_hosts() -> list[str]:
    from mountfs.tls import authority

    hosts = ["localhost", "127.0.0.1", "::1"]
    try:
        own = authority.check_host(socket.gethostname())
    except FsError:  # a name that nobody can connect to
        return hosts
    return hosts if own in hosts else [own, *hosts]


# --- renew


def _renew_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="the authority")
    parser.add_argument("names", nargs="*", metavar="NAME", help="renew these")
    parser.add_argument(
        "--expiring-in",
        type=_span,
        metavar="TIME",
        help="renew what expires within 12h, 30d, 8w; default without names: 30d",
    )
    parser.add_argument("--authority", action="store_true", help="renew the authority itself")
    parser.add_argument(
        "--days", type=_days, metavar="N", help="until they expire; default: as it was before"
    )
    parser.add_argument("--out", type=Path, metavar="OUT", help="of one NAME: put a copy there")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be renewed, and change nothing"
    )


def _renew(arguments: argparse.Namespace) -> int:
    from mountfs.tls.store import Store

    _check_renew(arguments)
    store = Store(arguments.directory)
    with store.locked():
        if arguments.authority:
            return _renew_authority(arguments, store)
        return _renew_leafs(arguments, store)


def _check_renew(arguments: argparse.Namespace) -> None:
    wrong: Callable[[str], None] = arguments.action_parser.error
    if arguments.names and arguments.expiring_in is not None:
        wrong("either NAME or --expiring-in, not both")
    if arguments.out is not None and len(arguments.names) != 1:
        wrong("--out is for one NAME")
    if arguments.authority and (
        arguments.names or arguments.expiring_in or arguments.out or arguments.days
    ):
        wrong("--authority goes alone: certificates are renewed after it")


def _renew_leafs(arguments: argparse.Namespace, store: "Store") -> int:
    from mountfs.tls.store import issued

    now = _now()
    if arguments.names:
        due = [store.find(name, now) for name in dict.fromkeys(arguments.names)]
    else:
        limit = now + (arguments.expiring_in or EXPIRING_IN_DEFAULT)
        due = [
            one
            for one in issued(store.directory, now)
            if one.certificate is None or one.certificate.not_valid_after_utc <= limit
        ]
    sound = [one for one in due if one.certificate is not None]
    broken = [one for one in due if one.certificate is None]
    renewed = sound
    if not arguments.dry_run:
        renewed = [
            store.renew(one, now, lifetime=arguments.days, out=arguments.out) for one in sound
        ]
    if arguments.json:
        show.print_json(
            {
                "dry_run": arguments.dry_run,
                "renewed": [_issued_as_json(one, arguments.out) for one in renewed],
                "failed": [_issued_as_json(one, None) for one in broken],
            }
        )
    else:
        _print_renewed(arguments, store, renewed)
    _warn_of_the_end(store)
    for one in broken:
        print(f"mountfs pki: {one.name} cannot be renewed: {one.problem}", file=sys.stderr)
    return show.EXIT_FAILED if broken else show.EXIT_OK


def _print_renewed(arguments: argparse.Namespace, store: "Store", renewed: "list[Issued]") -> None:
    if not renewed:
        print(f"Nothing to renew; when things expire: mountfs pki show {store.directory}")
        return
    would = "would be renewed" if arguments.dry_run else "renewed"
    print(f"{show.count_of(len(renewed), 'certificate')} {would}:")
    show.out().print(_table(renewed, _now()))
    if not arguments.dry_run:
        print("\nCopy them to where they are used, as when they were new; no restart is needed.")


def _renew_authority(arguments: argparse.Namespace, store: "Store") -> int:
    now = _now()
    if not arguments.dry_run:
        store.renew_authority(now)
    end = store.authority.certificate.not_valid_after_utc
    if arguments.json:
        show.print_json({"dry_run": arguments.dry_run, "expires_at": end.isoformat()})
    elif arguments.dry_run:
        print(f"The authority of {store.cluster} would be renewed; it expires {_ending(end, now)}.")
    else:
        print(
            f"The authority of {store.cluster} is renewed; it expires {_ending(end, now)}.\n"
            f"First copy {store.directory / 'ca.crt'} to every node and client, beside own.pem: it "
            "has the old\nauthority in it too.  Only then renew or issue certificates: who lacks "
            "the new ca.crt refuses them."
        )
    return show.EXIT_OK


# --- show


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", metavar="DIR|FILE", type=Path, help="an authority, an identity, or a certificate"
    )


def _show(arguments: argparse.Namespace) -> int:
    from mountfs.tls import authority, pem
    from mountfs.tls.store import ISSUED, issued, issued_in

    place, now = arguments.place, _now()
    if not place.exists():
        raise FsError(Fault.NOT_FOUND, f"{place} is missing")
    if not place.is_dir():
        file, listed = place, []
    elif (place / ISSUED).is_dir() or (place / pem.AUTHORITY_FILE).exists():
        file, listed = place / pem.CA_FILE, issued(place, now)
    elif (place / pem.OWN_FILE).exists() or (place / pem.CA_FILE).exists():
        file, listed = place / pem.CA_FILE, [issued_in(place, now)]
    else:
        raise FsError(
            Fault.NOT_FOUND,
            f"{place} is neither an authority nor an identity; to make an authority: "
            f"mountfs pki init {place}",
        )
    certificates = pem.certificates_in(pem.read(file, secret=False), file)
    if any(authority.kind_of(one) is None for one in certificates):
        raise FsError(Fault.INVALID, f"{file} has a certificate in it that is not of mountfs")
    expired = [one for one in certificates if not _is_in_time(one, now)]
    if arguments.json:
        show.print_json(
            {
                "file": str(file),
                "certificates": [_as_json(one) for one in certificates],
                "issued": [_issued_as_json(one, None) for one in listed],
            }
        )
    else:
        _print_all(file, certificates, listed, now)
    well = not expired and not any(one.problem for one in listed)
    return show.EXIT_OK if well else show.EXIT_FAILED


def _print_all(
    file: Path, certificates: "list[x509.Certificate]", listed: "list[Issued]", now: datetime
) -> None:
    console = show.out()
    for number, certificate in enumerate(certificates):
        if number:
            console.print()
        console.print(show.facts(_facts(certificate, file)))
    if listed:
        console.print()
        console.print(_table(listed, now))
    for one in listed:
        if one.problem:
            console.print(Text(f"  problem: {one.problem}", style="red"))


def _table(listed: "list[Issued]", now: datetime) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("name", "kind", "expires", "hosts"):
        table.add_column(heading, no_wrap=heading != "hosts")
    for one in listed:
        if one.certificate is None:
            table.add_row(show.name(one.name), "?", "?", "", style="red")
            continue
        said = _as_json(one.certificate)
        end = _ending(one.certificate.not_valid_after_utc, now)
        table.add_row(
            show.name(one.name),
            said["kind"],
            end,
            ", ".join(said["hosts"]),
            style="red" if one.problem else "",
        )
    return table


# --- what all of them say


def _facts(certificate: "x509.Certificate", place: Path) -> list[tuple[str, str]]:
    said = _as_json(certificate)
    rows = [
        ("where", show.name(str(place))),
        ("of cluster", said["cluster"]),
        ("kind", said["kind"]),
        ("name", said["name"]),
        ("expires", _ending(certificate.not_valid_after_utc, _now())),
        ("sha256", said["sha256"]),
    ]
    if said["hosts"]:
        rows.insert(4, ("hosts", ", ".join(said["hosts"])))
    return rows


def _as_json(certificate: "x509.Certificate") -> dict[str, Any]:
    """What a certificate says.  Raises INVALID: it is not one of ours."""
    from cryptography.hazmat.primitives import hashes

    from mountfs.tls import authority

    subject = authority.subject_of(certificate)
    return {
        "cluster": subject.cluster,
        "kind": subject.kind.value,
        "name": subject.name,
        "hosts": authority.hosts_of(certificate),
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "expires_at": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _issued_as_json(one: "Issued", out: Path | None) -> dict[str, Any]:
    said = {} if one.certificate is None else _as_json(one.certificate)
    directory = os.path.abspath(out or one.directory)
    return {"name": one.name, "directory": directory, "problem": one.problem, **said}


def _is_in_time(certificate: "x509.Certificate", now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _ending(end: datetime, now: datetime) -> str:
    from mountfs.tls import authority

    hours = round(abs(end - now) / timedelta(hours=1))
    span = show.count_of(hours, "hour") if hours < 48 else show.count_of(round(hours / 24), "day")
    return f"{authority.moment(end)}, {f'{span} ago' if end <= now else f'in {span}'}"


def _warn_of_the_end(store: "Store") -> None:
    """Certificates end with their authority: renewing them does not help any more."""
    from mountfs.tls.authority import LEAF_LIFETIME

    now, end = _now(), store.authority.certificate.not_valid_after_utc
    if end - now < LEAF_LIFETIME:
        print(
            f"mountfs pki: the authority expires on {_ending(end, now)}, and with it all that it "
            f"issues: mountfs pki renew {store.directory} --authority",
            file=sys.stderr,
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _days(text: str) -> timedelta:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 1 to 36500")
    return timedelta(days=int(text))


def _span(text: str) -> timedelta:
    """
    >>> _span("30d"), _span("12h")
    (datetime.timedelta(days=30), datetime.timedelta(seconds=43200))
    """
    if not re.fullmatch(r"[0-9]{1,4}[hdw]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 12h, 30d or 8w")
    return int(text[:-1]) * _UNITS[text[-1]]


ACTIONS: Final = (
    _Action(
        "init",
        "make the authority of a cluster, once",
        "Make the authority of a cluster: a key, and a certificate for 10 years.  What is there is "
        "never\noverwritten.",
        """\
examples:
  mountfs pki init /root/pki
  mountfs pki init /root/pki --cluster 0123456789abcdef0123456789abcdef

exit status: 0 made; 1 failed; 2 wrong call
""",
        _init_arguments,
        _init,
    ),
    _Action(
        "issue",
        "make an identity for a node or a client",
        """\
Make the identity of one node or client: a directory to be copied to its machine.  It stays in
DIR/issued/NAME too, from where it is renewed.

Addresses are not what makes an identity good: machines may change theirs.
""",
        """\
examples:
  mountfs pki issue /root/pki node n1
  mountfs pki issue /root/pki node n1 --host n1.example.org --host 10.0.0.1
  mountfs pki issue /root/pki client alice --days 30 --out /mnt/stick/alice

exit status: 0 made; 1 failed, for example because NAME has one; 2 wrong call
""",
        _issue_arguments,
        _issue,
    ),
    _Action(
        "renew",
        "replace what is about to expire",
        """\
Make new keys and certificates in place of old ones, for the same names and for as long as those
were made for.  An old one is whole until, by one rename, the new one is in its place.

Without a NAME: all that expire within 30 days, so it can be run every day.
""",
        """\
examples:
  mountfs pki renew /root/pki --dry-run            what would be renewed
  mountfs pki renew /root/pki                      what expires within 30 days
  mountfs pki renew /root/pki --expiring-in 8w     what expires within 8 weeks
  mountfs pki renew /root/pki n1 n2                these, whenever they expire
  mountfs pki renew /root/pki --authority          the authority; see what it says then

exit status: 0 renewed, or nothing to renew; 1 failed; 2 wrong call
""",
        _renew_arguments,
        _renew,
    ),
    _Action(
        "show",
        "what there is, and when it expires",
        "Show what an authority has issued, what is in an identity, or one certificate.  Keys are "
        "not shown.",
        """\
examples:
  mountfs pki show /root/pki
  mountfs pki show /etc/mountfs
  mountfs pki show --json /root/pki | jq -r '.issued[] | [.expires_at, .name] | @tsv' | sort

exit status: 0 all well; 1 something expired or cannot be used, or failed; 2 wrong call
""",
        _show_arguments,
        _show,
    ),
)
