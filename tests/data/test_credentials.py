"""Content credentials, on files signed here with a certificate of our own."""

import datetime
import io
import json

import numpy as np
import pytest
from PIL import Image

from blades_dist.data.credentials import available, read_credentials

pytestmark = pytest.mark.skipif(not available(), reason="c2pa-python is not installed (extra: credentials)")
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CAPTURED = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"


def _picture() -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def signer():
    """A two-step chain: C2PA refuses certificates that sign themselves."""
    import c2pa
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def name(text):
        return x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, text), x509.NameAttribute(NameOID.COMMON_NAME, text)]
        )

    def certificate(subject, key, issuer, by, authority):
        usage = {field: False for field in ("content_commitment", "key_encipherment", "data_encipherment")}
        usage |= {"key_agreement": False, "encipher_only": False, "decipher_only": False}
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        built = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
        )
        if not authority:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return built.sign(by, hashes.SHA256())

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = [certificate(name("Test signer"), leaf, name("Test root"), root, False)]
    chain.append(certificate(name("Test root"), root, name("Test root"), root, True))
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain).decode()
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key = leaf.private_bytes(*plain).decode()
    return lambda: c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", pem.encode(), key.encode(), None))


def _signed(signer, source_type: str) -> bytes:
    import c2pa

    action = {"action": "c2pa.created", "digitalSourceType": source_type}
    manifest = {
        "claim_generator_info": [{"name": "a generator of ours", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    out = io.BytesIO()
    with c2pa.Builder.from_json(json.dumps(manifest)) as builder:
        builder.sign(signer(), "image/jpeg", io.BytesIO(_picture()), out)
    return out.getvalue()


def test_most_files_have_none():
    assert read_credentials(_picture(), "jpeg") is None
    assert read_credentials(b"anything", "gif") is None


def test_a_generator_that_says_so(signer):
    found = read_credentials(_signed(signer, GENERATED), "jpeg")
    assert found.generated and found.source_types == ("trainedAlgorithmicMedia",)
    assert found.state == "Valid" and found.generator == "a generator of ours" and found.issuer == "Test signer"


def test_a_camera_that_says_so(signer):
    found = read_credentials(_signed(signer, CAPTURED), "jpeg")
    assert not found.generated and found.source_types == ("digitalCapture",) and found.state == "Valid"


def test_changed_pixels_break_the_seal(signer):
    data = bytearray(_signed(signer, CAPTURED))
    data[-40] ^= 1
    assert read_credentials(bytes(data), "jpeg").state == "Invalid"


def test_damaged_manifests_do_not_raise(signer):
    whole = _signed(signer, GENERATED)
    random = np.random.default_rng(1)
    begin = whole.index(b"jumb")
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(begin, begin + 4000, 3):
            data[place] = random.integers(0, 256)
        found = read_credentials(bytes(data), "jpeg")
        assert found is None or found.state in ("Valid", "Invalid", "unknown")
