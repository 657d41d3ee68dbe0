"""Providers as an operator writes them down."""

import pytest

from app.config import read_providers, read_settings
from app.errors import BadSetting

WHOLE = {
    "PONDER_OIDC_ACME_ISSUER": "https://acme.example/",
    "PONDER_OIDC_ACME_CLIENT_ID": "id",
    "PONDER_OIDC_ACME_CLIENT_SECRET": "hidden-secret",
}
SPACES = {
    "SPACE_HOST": "ada-ponder.hf.space",
    "OAUTH_CLIENT_ID": "id",
    "OAUTH_CLIENT_SECRET": "hidden-secret",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}


def test_a_whole_provider_has_a_label_of_its_name_and_no_slash_at_its_end() -> None:
    (found,) = read_providers(WHOLE)
    assert (found.name, found.kind, found.issuer, found.label) == ("acme", "oidc", "https://acme.example", "Acme")
    (found,) = read_providers(WHOLE | {"PONDER_OIDC_ACME_LABEL": " The Acme Login "})
    assert found.label == "The Acme Login"


@pytest.mark.parametrize(
    ("name", "kind", "issuer", "label"),
    [
        ("GITHUB", "github", "https://github.com", "GitHub"),
        ("GOOGLE", "oidc", "https://accounts.google.com", "Google"),
        ("HUGGINGFACE", "oidc", "https://huggingface.co", "Hugging Face"),
    ],
)
def test_known_providers_need_an_id_and_a_secret_alone(name: str, kind: str, issuer: str, label: str) -> None:
    given = {f"PONDER_OIDC_{name}_CLIENT_ID": "id", f"PONDER_OIDC_{name}_CLIENT_SECRET": "hidden-secret"}
    (found,) = read_providers(given)
    assert (found.kind, found.issuer, found.label) == (kind, issuer, label)


@pytest.mark.parametrize("missing", list(WHOLE))
@pytest.mark.parametrize("blank", [None, "", "  "])
def test_a_provider_that_is_not_whole_names_what_is_missing(missing: str, blank: str | None) -> None:
    given = {key: value for key, value in (WHOLE | {missing: blank}).items() if value is not None}
    with pytest.raises(BadSetting, match=f"^{missing} is missing") as caught:
        read_providers(given)
    assert "hidden-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["PONDER_OIDC_ACME_SECRET", "PONDER_OIDC_ACME", "PONDER_OIDC_MY_ACME_ISSUER", "PONDER_OIDC_acme_ISSUER"],
)
def test_an_unknown_key_is_named(key: str) -> None:
    with pytest.raises(BadSetting, match=f"^{key} is not known") as caught:
        read_providers({**WHOLE, key: "a-value"})
    assert "a-value" not in str(caught.value)


@pytest.mark.parametrize(
    "issuer",
    [
        "http://acme.example",
        "http://127.0.0.1.acme.example",
        "http://localhost.acme.example",
        "http://127.0.0.1@acme.example",
        "http://10.0.0.1",
        "ftp://acme.example",
        "//acme.example",
        "acme.example",
        "javascript:alert(1)",
        "file:///etc/passwd",
    ],
)
def test_an_issuer_without_tls_is_taken_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch, issuer: str) -> None:
    for key, value in (WHOLE | {"PONDER_OIDC_ACME_ISSUER": issuer}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BadSetting, match=r"^PONDER_OIDC_ACME_ISSUER cannot be used"):
        read_settings()


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:9400", "http://localhost:9400", "http://[::1]:9400"])
def test_an_issuer_on_this_machine_needs_no_tls(issuer: str) -> None:
    (found,) = read_providers(WHOLE | {"PONDER_OIDC_ACME_ISSUER": issuer})
    assert found.issuer == issuer


def test_an_issuer_without_a_host_cannot_be_used() -> None:
    with pytest.raises(BadSetting, match=r"^PONDER_OIDC_ACME_ISSUER"):
        read_providers(WHOLE | {"PONDER_OIDC_ACME_ISSUER": "https://"})


def test_a_label_of_sixty_one_characters_is_too_long() -> None:
    with pytest.raises(BadSetting, match=r"^PONDER_OIDC_ACME_LABEL"):
        read_providers(WHOLE | {"PONDER_OIDC_ACME_LABEL": "x" * 61})


def test_two_providers_stand_side_by_side() -> None:
    more = {key.replace("ACME", "LAB"): value for key, value in WHOLE.items()}
    assert [found.name for found in read_providers(WHOLE | more)] == ["acme", "lab"]


def test_spaces_variables_give_hugging_face_only_together() -> None:
    (found,) = read_providers(SPACES)
    assert (found.name, found.kind, found.client_id) == ("huggingface", "oidc", "id")
    assert found.client_secret.get_secret_value() == "hidden-secret"
    assert read_providers({key: value for key, value in SPACES.items() if key != "SPACE_HOST"}) == ()
    with pytest.raises(BadSetting, match="SECRET is missing"):
        read_providers({key: value for key, value in SPACES.items() if key != "OAUTH_CLIENT_SECRET"})


def test_an_operators_own_hugging_face_application_goes_before_the_spaces() -> None:
    own = {"PONDER_OIDC_HUGGINGFACE_CLIENT_ID": "own", "PONDER_OIDC_HUGGINGFACE_CLIENT_SECRET": "own-secret"}
    (found,) = read_providers(SPACES | own)
    assert (found.client_id, found.client_secret.get_secret_value()) == ("own", "own-secret")
