import pytest

from app.config import read_providers, read_settings
from app.errors import BadSetting

SPACE = {
    "SPACE_HOST": "somebody-ponder.hf.space",
    "SPACE_ID": "somebody/ponder",
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": "hidden",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}


def test_the_machines_own_hugging_face_token_signs_nobody_in() -> None:
    assert read_providers({"HF_TOKEN": "hf_secret", "OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": "x"}) == ()


def test_on_spaces_the_platform_says_where_we_are_and_who_signs_people_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SPACE.items():
        monkeypatch.setenv(key, value)
    settings = read_settings()
    assert (settings.public_url, settings.is_on_spaces) == ("https://somebody-ponder.hf.space", True)
    assert settings.frame_origins == ("https://huggingface.co",)
    assert settings.trusted_proxies == 1
    (provider,) = settings.providers
    assert (provider.name, provider.issuer, provider.label) == ("huggingface", "https://huggingface.co", "Hugging Face")
    monkeypatch.setenv("PONDER_BASE_URL", "https://ponder.example")
    assert read_settings().public_url == "https://ponder.example"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PONDER_BASE_URL", "ponder.example"),
        ("PONDER_BASE_URL", "https://ponder.example/somewhere"),
        ("PONDER_FRAMED_BY", "https://a.example; script-src *"),
        ("PONDER_GUEST_DAYS", "0"),
        ("PONDER_SECRET_KEY", "changeme"),
        ("PONDER_TRUSTED_PROXIES", "-1"),
    ],
)
def test_a_bad_setting_names_its_key(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(BadSetting, match=key):
        read_settings()


def test_no_secret_shows_where_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONDER_SECRET_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("PONDER_OIDC_GITHUB_CLIENT_ID", "client")
    monkeypatch.setenv("PONDER_OIDC_GITHUB_CLIENT_SECRET", "hidden-secret")
    shown = repr(read_settings())
    assert "hidden-secret" not in shown
    assert "0123456789abcdef" not in shown
