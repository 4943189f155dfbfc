"""Variables of Kubernetes for a Service that is called as we are."""

from __future__ import annotations

import pytest

from chatd.config_sources import load
from chatd.errors import SettingError

SERVICE = {
    "CHATD_SERVICE_HOST": "10.0.0.1",
    "CHATD_SERVICE_PORT": "8080",
    "CHATD_SERVICE_PORT_HTTP": "8080",
    "CHATD_PORT": "tcp://10.0.0.1:8080",
    "CHATD_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "CHATD_PORT_8080_TCP_PROTO": "tcp",
    "CHATD_PORT_8080_TCP_PORT": "8080",
    "CHATD_PORT_8080_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("name", ["CHATD", "CHATD_ADMIN", "CHATD_REDIS_2"])
def test_what_kubernetes_sets_for_a_service_is_passed_over_with_one_line(name: str) -> None:
    env = {variable.replace("CHATD", name, 1): value for variable, value in SERVICE.items()}
    settings = load({}, None, {**env, "CHATD_LANES": "3"})
    assert (settings.port, settings.admin_port, settings.lanes) == (8080, 8081, 3)
    (warning,) = settings._warnings
    assert f"{name}_PORT" in warning
    assert "5 more" in warning
    assert "enableServiceLinks" in warning


def test_a_service_of_ipv6_and_of_udp() -> None:
    settings = load({}, None, {"CHATD_PORT": "udp://[fd00::1]:53", "CHATD_PORT_53_UDP": "udp://[fd00::1]:53"})
    assert settings.port == 8080


@pytest.mark.parametrize(
    "variable", ["CHATD_PORT_8080", "CHATD_SERVICE", "CHATD_PORT_8080_TCP", "CHATD_FOO_PORT", "CHATD_SERVICE_HOSTS"]
)
def test_what_it_would_not_set_is_a_setting_misspelt(variable: str) -> None:
    with pytest.raises(SettingError, match="is not a setting"):
        load({}, None, {variable: "8080"})


def test_a_port_that_is_one_counts_beside_the_others() -> None:
    settings = load({}, None, {**SERVICE, "CHATD_PORT": "9000"})
    assert settings.port == 9000
