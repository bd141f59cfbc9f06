"""Certificates and keys: whom they are for, who accepts them, and who can read them."""

import datetime
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the flower extra is not installed")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedsiege.errors import InputError
from fedsiege.flower.certificates import CA, CA_KEY, DAYS, SERVER, SERVER_KEY, write_node_key, write_server

pytestmark = pytest.mark.flower


def shakes(server: Path, client: Path, name: str) -> None:
    """A TLS handshake in memory: the server's files on one side, the authority and a name on the other."""
    offers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    offers.load_cert_chain(server / SERVER, server / SERVER_KEY)
    asks = ssl.create_default_context(cafile=str(client / CA))
    asks.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = asks.wrap_bio(down, up, server_hostname=name)
    there = offers.wrap_bio(up, down, server_side=True)
    waiting = [here, there]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "fl.example.org", "10.1.2.3"])
def test_a_server_is_accepted_under_each_of_its_names(tmp_path: Path, name: str) -> None:
    write_server(tmp_path, ["fl.example.org", "10.1.2.3"])
    shakes(tmp_path, tmp_path, name)


@pytest.mark.parametrize("name", ["example.org", "127.0.0.2", "a.localhost"])
def test_a_server_is_refused_under_any_other_name(tmp_path: Path, name: str) -> None:
    write_server(tmp_path, ["fl.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shakes(tmp_path, tmp_path, name)


def test_a_server_of_another_authority_is_refused(tmp_path: Path) -> None:
    write_server(tmp_path / "one")
    write_server(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        shakes(tmp_path / "one", tmp_path / "other", "localhost")


def test_a_new_server_certificate_is_signed_by_the_authority_that_the_nodes_know(tmp_path: Path) -> None:
    write_server(tmp_path)
    known = (tmp_path / CA).read_bytes()
    (tmp_path / SERVER).unlink()
    write_server(tmp_path, ["new.example.org"])
    assert (tmp_path / CA).read_bytes() == known
    shakes(tmp_path, tmp_path, "new.example.org")


def test_the_server_cannot_sign_and_the_authority_signs_no_authorities(tmp_path: Path) -> None:
    write_server(tmp_path)
    server, authority = (x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in (SERVER, CA))
    told = server.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not told.ca
    told = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (told.ca, told.path_length) == (True, 0)


@pytest.mark.parametrize("days", [None, 7])
def test_certificates_hold_as_long_as_was_asked_for(tmp_path: Path, days: int | None) -> None:
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    write_server(tmp_path) if days is None else write_server(tmp_path, days=days)
    after = datetime.datetime.now(datetime.UTC)
    for name in (SERVER, CA):
        made = x509.load_pem_x509_certificate((tmp_path / name).read_bytes())
        lasts = datetime.timedelta(days=DAYS if days is None else days)
        assert before <= made.not_valid_after_utc - lasts <= after
        assert before <= made.not_valid_before_utc + datetime.timedelta(minutes=5) <= after


def test_private_keys_can_be_read_by_their_owner_alone(tmp_path: Path) -> None:
    write_server(tmp_path)
    write_node_key(tmp_path / "node")
    for name in (CA_KEY, SERVER_KEY, "node"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_node_s_public_key_belongs_to_its_private_key(tmp_path: Path) -> None:
    public = write_node_key(tmp_path / "keys" / "node")
    key = load_ssh_private_key((tmp_path / "keys" / "node").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert public == tmp_path / "keys" / "node.pub"
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_reads_a_node_s_key_as_its_own(tmp_path: Path) -> None:
    public = write_node_key(tmp_path / "node")
    said = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "node"], capture_output=True, text=True, check=True)
    assert said.stdout.split()[:2] == public.read_text().split()[:2]


@pytest.mark.parametrize(
    "host", ["", "a b", "fl.example.org:8000", "https://fl.example.org", "ö.example.org", "a..b"]
)
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match=r"host: got .* expected an address or a name"):
        write_server(tmp_path, [host])
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_server(tmp_path)
    write_node_key(tmp_path / "node")
    with pytest.raises(InputError, match=r"server\.crt: is there already"):
        write_server(tmp_path)
    with pytest.raises(InputError, match="node: is there already"):
        write_node_key(tmp_path / "node")
    (tmp_path / "node").unlink()
    with pytest.raises(InputError, match=r"node\.pub: is there already"):
        write_node_key(tmp_path / "node")


def test_days_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="days: got 0; expected 1 or more"):
        write_server(tmp_path, days=0)


def test_the_commands_write_the_files_and_refuse_with_one_line(tmp_path: Path) -> None:
    def said(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedsiege.flower.certificates", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert said("server", "keys", "--host", "fl.example.org").returncode == 0
    assert said("node", "site").returncode == 0
    assert {path.name for path in (tmp_path / "keys").iterdir()} == {CA, CA_KEY, SERVER, SERVER_KEY}
    assert (tmp_path / "site.pub").is_file()
    shakes(tmp_path / "keys", tmp_path / "keys", "fl.example.org")
    refused = said("node", "site")
    assert refused.returncode == 2
    assert refused.stderr.startswith("fedsiege: error: site: is there already")
    assert len(refused.stderr.splitlines()) == 1
