"""Certificates and keys of a deployment: an authority of its own, the server's certificate, a key for each node.

`python -m fedsiege.flower.certificates server FOLDER --host NAME` writes the authority's `ca.crt` and `ca.key` and,
signed by it, `server.crt` and `server.key`, for the names and addresses under which nodes reach the SuperLink;
127.0.0.1 and localhost are always among them. `ca.crt` goes to every machine, the three others stay.

`python -m fedsiege.flower.certificates node FILE`, on the node's own machine, writes its private key FILE and the
public one FILE.pub, which alone goes to the SuperLink.

All keys are on the curve P-384, as SuperNodes want theirs; a node's is in OpenSSH's format, as `ssh-keygen -t ecdsa
-b 384` writes it. Certificates hold from five minutes ago (clocks differ), for `DAYS` days. Private keys are for
their owner alone.
"""

import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsiege.errors import InputError

CA, CA_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.crt", "server.key"
"""The files of a deployment's server."""

HERE = ("127.0.0.1", "localhost")
"""What a server on this machine is always called."""

DAYS = 90
"""How long certificates hold, in days."""


def write_server(folder: Path, hosts: Sequence[str] = (), days: int = DAYS) -> None:
    """Write the certificate and key of a server that is reached as one of `hosts`, and of the authority behind it.

    An authority that is in the folder already signs the new certificate, so that the nodes' copies of `ca.crt` stay
    right. InputError for a host that is neither an address nor a name, for `days` below 1, and where there is a
    server's certificate already.
    """
    names = [name_of(host) for host in dict.fromkeys((*HERE, *hosts))]
    if days < 1:
        raise InputError(f"days: got {days}; expected 1 or more")
    if (folder / SERVER).exists():
        raise InputError(f"{folder / SERVER}: is there already; expected a folder without one, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    authority, key = _authority(folder, days), ec.generate_private_key(ec.SECP384R1())
    made = _builder("FedSiege SuperLink", authority[0].subject, key.public_key(), days)
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority[1].public_key())
    made = made.add_extension(issuer, critical=False)  # Python's strict checks, from 3.13 on, want it
    signed = made.sign(authority[1], hashes.SHA256())
    _write_secret(folder / SERVER_KEY, _pem(key))
    (folder / SERVER).write_bytes(signed.public_bytes(Encoding.PEM))


def write_node_key(path: Path) -> Path:
    """Write a node's private key to `path` and its public key to `path`.pub, which is returned.

    InputError where either is there already: a node is known by its key.
    """
    public = path.with_name(f"{path.name}.pub")
    for place in (path, public):
        if place.exists():
            raise InputError(f"{place}: is there already; a node is known by its key: expected a name that is free")
    path.parent.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return public


def name_of(host: str) -> x509.GeneralName:
    """A host as certificates name it: an address as an address, everything else by its DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(_checked(host))
    except ValueError:
        raise InputError(f"host: got {host!r}; expected an address or a name, without a port") from None


def _checked(host: str) -> str:
    """A DNS name in letters, digits, dots and hyphens; ValueError for anything else."""
    parts = host.split(".")
    if not host.isascii() or not all(part and part.replace("-", "a").isalnum() for part in parts):
        raise ValueError
    return host


def _authority(folder: Path, days: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority in a folder, a new one where there is none."""
    if (folder / CA).exists() and (folder / CA_KEY).exists():
        key = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(
                f"{folder / CA_KEY}: is no key on an elliptic curve; expected one that was written here"
            )
        return x509.load_pem_x509_certificate((folder / CA).read_bytes()), key
    key = ec.generate_private_key(ec.SECP384R1())
    usage = {
        **dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True),
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    }
    name = "FedSiege deployment"
    made = _builder(name, _called(name), key.public_key(), days)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(x509.KeyUsage(**usage), critical=True)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signed = made.add_extension(own, critical=False).sign(key, hashes.SHA256())
    _write_secret(folder / CA_KEY, _pem(key))
    (folder / CA).write_bytes(signed.public_bytes(Encoding.PEM))
    return signed, key


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    """What all certificates here have in common."""
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(issuer, _called(name), key, x509.random_serial_number())
    return made.not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(
        now + datetime.timedelta(days=days)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that nobody but its owner could ever read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


app = typer.Typer(add_completion=False, help="Certificates and keys of a Flower deployment.")

Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="NAME", help="Name or address under which nodes reach it (repeatable)."),
]
Days = Annotated[int, typer.Option("--days", metavar="N", help="How long the certificates hold.")]


@app.command()
def server(folder: Path, hosts: Hosts = None, days: Days = DAYS) -> None:
    """Write ca.crt, ca.key, server.crt and server.key to FOLDER."""
    write_server(folder, hosts or (), days)
    typer.echo(f"wrote {folder / SERVER}; {folder / CA} goes to every node's machine, the keys to none")


@app.command()
def node(file: Path) -> None:
    """Write a node's private key to FILE, and FILE.pub."""
    typer.echo(f"wrote {file} and {write_node_key(file)}; the SuperLink is told the second")


if __name__ == "__main__":
    try:
        app()
    except InputError as error:
        typer.echo(f"fedsiege: error: {error}", err=True)
        sys.exit(error.exit_code)
