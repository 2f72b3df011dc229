"""Every setting of the server: typed, bounded, frozen, its unit in its name.

Read from the environment (``HINDCAST_HTTP__PORT=8100``: two underscores step into a group) and from the arguments of
`hindcast up`. Unknown names are errors. `Settings.checked()` refuses combinations that would be unsafe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve_app.errors import InvalidInput
from serve_app.settings_base import Group
from serve_app.settings_parts import (
    DeferralSettings,
    DeploymentSettings,
    DeploymentsSettings,
    JournalSettings,
    LedgerSettings,
    OutboxSettings,
    SegmentSettings,
)
from serve_app.settings_requests import (
    BatchingSettings,
    BudgetSettings,
    HttpSettings,
    LimitSettings,
    QualitySettings,
    SecuritySettings,
    ServingSettings,
    is_loopback,
)
from serve_app.settings_watching import EXPENDABLE, LogSettings, TestingSettings, TracingSettings

__all__ = [
    "EXPENDABLE",
    "BatchingSettings",
    "BudgetSettings",
    "DeferralSettings",
    "DeploymentSettings",
    "DeploymentsSettings",
    "HttpSettings",
    "JournalSettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "OutboxSettings",
    "QualitySettings",
    "SecuritySettings",
    "SegmentSettings",
    "ServingSettings",
    "Settings",
    "TestingSettings",
    "TracingSettings",
    "is_loopback",
    "load_settings",
]


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="HINDCAST_", env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    data: Path = Path("data")
    """The data folder: catalogue, log, releases, policies, ledger (see ARCHITECTURE.md)."""
    topology: Literal["chain", "fused"] = "chain"
    """`chain`: each stage its own autoscaled deployment. `fused`: the same classes inside the ingress replica."""
    http: HttpSettings = HttpSettings()
    budgets: BudgetSettings = BudgetSettings()
    batching: BatchingSettings = BatchingSettings()
    quality: QualitySettings = QualitySettings()
    limits: LimitSettings = LimitSettings()
    deployments: DeploymentsSettings = DeploymentsSettings()
    journal: JournalSettings = JournalSettings()
    ledger: LedgerSettings = LedgerSettings()
    deferrals: DeferralSettings = DeferralSettings()
    outbox: OutboxSettings = OutboxSettings()
    security: SecuritySettings = SecuritySettings()
    logs: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    segments: SegmentSettings = SegmentSettings()
    serving: ServingSettings = ServingSettings()
    testing: TestingSettings = TestingSettings()

    def checked(self) -> Self:
        """Raise InvalidInput where settings contradict each other or would open the server to strangers."""
        if not self.http.loopback and self.security.keys_file is None:
            raise InvalidInput(
                f"binding {self.http.host} without API keys would let anyone on the network call the server",
                field="http.host",
                hint="bind 127.0.0.1, or set security.keys_file",
            )
        if self.ledger.backend == "redis" and not self.ledger.redis_url:
            raise InvalidInput("the redis ledger needs an address", field="ledger.redis_url", hint="redis://host:6379/0")
        for name in DeploymentsSettings.model_fields:
            one: DeploymentSettings = getattr(self.deployments, name)
            if one.min_replicas > one.max_replicas:
                raise InvalidInput(
                    "min_replicas is larger than max_replicas", field=f"deployments.{name}", hint="raise max_replicas"
                )
        if self.deployments.ledger.max_replicas != 1:
            raise InvalidInput("one process owns the ledger", field="deployments.ledger.max_replicas", hint="set it to 1")
        self._check_ingress()
        self._check_outbox()
        self._check_testing()
        return self

    def _check_ingress(self) -> None:
        ingress, most = self.deployments.ingress, self.http.under_way_per_ingress
        if self.http.haproxy and ingress.max_replicas > ingress.min_replicas and ingress.target_ongoing >= most:
            raise InvalidInput(
                f"an ingress is sent {most} requests at once (http.under_way_per_ingress): it would never count as busy",
                field="deployments.ingress.target_ongoing",
                hint=f"set it to {max(1, most // 2)} or so",
            )

    def _check_outbox(self) -> None:
        own = self.outbox
        if own.secret is not None and own.secret_file is not None:
            raise InvalidInput("give either secret or secret_file", field="outbox.secret", hint="remove one of them")
        if own.webhook_url is None:
            if own.secret is not None or own.secret_file is not None:
                raise InvalidInput("a secret without an address", field="outbox.webhook_url", hint="say where to send")
        elif own.webhook_url.scheme == "http" and not HttpSettings(host=own.webhook_url.host or "").loopback:
            raise InvalidInput(
                "messages and the secret would cross the network in the clear", field="outbox.webhook_url", hint="use https"
            )

    def _check_testing(self) -> None:
        planted = [
            name for name, field in TestingSettings.model_fields.items() if getattr(self.testing, name) != field.default
        ]
        if planted and (not self.http.loopback or not (self.data / EXPENDABLE).is_file()):
            raise InvalidInput(
                "faults are planted for tests only: on loopback, and on a data folder that is marked as expendable",
                field=f"testing.{planted[0]}",
                hint=f"unset HINDCAST_TESTING__{planted[0].upper()}",
            )


# Of the tests and of `hindcast load`, not of the server.
_OWN_VARIABLES = {"HINDCAST_SHARED_DATA", "HINDCAST_DEMO_RELEASE", "HINDCAST_API_KEY"}


def _unknown_variables() -> list[str]:
    """What pydantic passes over: names are read in any case, and only a group has names below it, which it checks itself."""
    groups = {name for name, field in Settings.model_fields.items() if isinstance(field.default, Group)}

    def known(name: str) -> bool:
        setting, below, _ = name.lower().removeprefix("hindcast_").partition("__")
        return name in _OWN_VARIABLES or setting in (groups if below else Settings.model_fields)

    return sorted(name for name in os.environ if name.lower().startswith("hindcast_") and not known(name))


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (nested dicts) on top. InvalidInput names the setting and the fix."""
    if unknown := _unknown_variables():
        raise InvalidInput("no such setting", field=unknown[0], hint="see serve_app/settings.py for the names")
    try:
        return Settings(**overrides).checked()
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            first["msg"], field=".".join(str(part) for part in first["loc"]), hint="see serve_app/settings.py for its bounds"
        ) from error
