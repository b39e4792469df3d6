"""Settings: Django's, else the environment's, else a default; the plan's names are aliases."""

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_evervec import conf
from django_evervec.fields import EmbeddingField


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERVEC_MODEL", "EVERVEC_DIMENSION", "SENTENCE_TRANSFORMER_MODEL", "EMBEDDING_DIMENSION"):
        monkeypatch.delenv(name, raising=False)


@override_settings(EVERVEC_MODEL=None, EVERVEC_DIMENSION=None)
def test_the_default_dimension() -> None:
    assert conf.dimension() == 768
    assert EmbeddingField().dimensions == 768
    assert conf.text("EVERVEC_MODEL") is None


@override_settings(
    EVERVEC_MODEL=None, EVERVEC_DIMENSION=None, SENTENCE_TRANSFORMER_MODEL="a/b", EMBEDDING_DIMENSION=384
)
def test_the_plans_names() -> None:
    assert (conf.text("EVERVEC_MODEL"), conf.dimension()) == ("a/b", 384)


def test_djangos_settings_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERVEC_DASHBOARD_TIMEOUT", "5")
    assert conf.number("EVERVEC_DASHBOARD_TIMEOUT") == 5
    with override_settings(EVERVEC_DASHBOARD_TIMEOUT=7):
        assert conf.number("EVERVEC_DASHBOARD_TIMEOUT") == 7


@override_settings(EVERVEC_DIMENSION="many")
def test_what_is_no_number_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="EVERVEC_DIMENSION is not a number: 'many'"):
        conf.dimension()
