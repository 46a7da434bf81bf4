"""Tokens from file, environment and configuration, and binding beyond loopback without any."""

import hashlib

import pytest

from blades_dist.config import ServeConfig
from blades_dist.serving.middleware import read_tokens
from blades_dist.settings import ConfigError, load

FIRST, SECOND = "first-token-of-sixteen", "second-token-of-sixteen"


def config(**values):
    return ServeConfig.model_validate({"detector": "x"} | values)


def test_tokens_are_read_from_everywhere(tmp_path, monkeypatch):
    assert not read_tokens(config())
    file = tmp_path / "tokens"
    file.write_text(f"# comment\n\n{FIRST}\nsha256:{hashlib.sha256(SECOND.encode()).hexdigest()}\n")
    monkeypatch.setenv("BLADES_SERVE_TOKENS", "third-token-of-sixteen, ")
    third = "sha256:" + hashlib.sha256(b"fourth").hexdigest()
    tokens = read_tokens(config(tokens_file=file, tokens=[third]))
    for token in (FIRST, SECOND, "third-token-of-sixteen", "fourth"):
        assert tokens.allow(f"Bearer {token}")
    for header in ("", "Bearer", "Bearer ", f"Basic {FIRST}", FIRST, f"Bearer {FIRST}x", "Bearer \udcff"):
        assert not tokens.allow(header)
    assert all(entry.startswith("sha256:") for entry in tokens.hashed) and FIRST not in str(tokens.hashed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no token"),
        ("short", "can be guessed"),
        ("sha256:12", "64 hexadecimal digits"),
        (None, "cannot be read"),
    ],
)
def test_files_that_do_not_serve(tmp_path, content, told):
    if content is not None:
        (tmp_path / "tokens").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_tokens(config(tokens_file=tmp_path / "tokens"))


def test_beyond_loopback_only_with_tokens(tmp_path, monkeypatch):
    for host in ("0.0.0.0", "::", "10.1.2.3", "detector.example"):
        with pytest.raises(ConfigError, match=f"host: {host} can be reached from elsewhere.*tokens_file"):
            load(ServeConfig, "serve", None, ["detector=x", f'host="{host}"'])
        assert config(host=host, tokens_file="tokens").authenticated
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert not config(host=host).authenticated
    monkeypatch.setenv("BLADES_SERVE_TOKENS", FIRST)
    assert config(host="0.0.0.0").authenticated


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tokens": ["plain"]}, "String should match"),
        ({"others": {"default": "y"}}, "is the name of the default bundle"),
        ({"shadow": {"none": "y"}}, "none is no bundle; there are default"),
        ({"max_replicas": 1, "replicas": 2}, "max_replicas: 1 is less than replicas"),
        ({"webhook_hosts": ["a"]}, "webhook_secret_file"),
        ({"webhook_private_hosts": ["a"]}, "a is not among webhook_hosts"),
        ({"others": {"a/b": "y"}}, "String should match"),
    ],
)
def test_what_does_not_fit_together_is_told(values, told):
    with pytest.raises(ValueError, match=told):
        config(**values)
