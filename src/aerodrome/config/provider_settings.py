"""Where models come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from aerodrome.config.section import Section, broken_rule
from aerodrome.config.types import (
    Name,
    Secret,
    Url,
)


class ProviderSettings(Section):
    """Where models come from, for one tenant or for all that have no entry of their own."""

    type: Literal["github", "openai", "azure", "anthropic"] = Field(
        default="github",
        description="`github` uses GitHub's own models with a GitHub token; the others are your own endpoint and key.",
    )
    base_url: Url | None = Field(
        default=None,
        description="Address of the model API. Needed for every type but `github`.",
        json_schema_extra={"example": '"https://models.example/v1"'},
    )
    api_key: Secret | None = Field(
        default=None,
        description="Key of the model API: the key itself, or better a reference (docs/secrets.md).",
        json_schema_extra={"example": '"env:MODEL_API_KEY"'},
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Model of sessions that name none.",
        json_schema_extra={"example": '"gpt-4.1"'},
    )
    wire_api: Literal["completions", "responses"] | None = Field(
        default=None,
        description="Which API the endpoint speaks; without it the Copilot CLI decides.",
        json_schema_extra={"example": '"completions"'},
    )
    azure_api_version: str | None = Field(
        default=None,
        min_length=1,
        description="API version of an `azure` endpoint; without it the versionless route is used.",
        json_schema_extra={"example": '"2024-10-21"'},
    )
    github_token: Secret | None = Field(
        default=None,
        description="GitHub token with Copilot access, for the type `github`; a reference as above.",
        json_schema_extra={"example": '"env:GITHUB_TOKEN"'},
    )

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if self.type != "github" and self.base_url is None:
            raise broken_rule("base_url", message=f'expected a value: the provider type "{self.type}" needs one')
        if self.type == "github":
            for key in ("base_url", "api_key", "wire_api"):
                if getattr(self, key) is not None:
                    raise broken_rule(
                        key, message='not used by the provider type "github"; expected type openai, azure or anthropic'
                    )
        if self.type != "azure" and self.azure_api_version is not None:
            raise broken_rule("azure_api_version", message='used by the provider type "azure" only')
        return self


class ProviderSection(ProviderSettings):
    tenants: dict[Name, ProviderSettings] = Field(
        default_factory=dict,
        description="Providers of single tenants, with the same keys. An entry stands alone: nothing of the common "
        "provider is used for that tenant.",
        json_schema_extra={
            "example": '{ acme = { type = "openai", base_url = "https://models.acme.example/v1", model = "gpt-4.1" } }'
        },
    )

    def sections(self) -> dict[str, ProviderSettings]:
        """The common one and those of tenants, by the names that they have in the file."""
        return {"provider": self, **{f"provider.tenants.{tenant}": own for tenant, own in self.tenants.items()}}

    def without_token(self) -> list[str]:
        """The sections of GitHub's models that have no token for them."""
        return [name for name, one in self.sections().items() if one.type == "github" and one.github_token is None]

    def of(self, tenant: str) -> ProviderSettings:
        """The tenant's own entry, whole, or the common one: keys never meet somebody else's address."""
        return self.tenants.get(tenant, self)


def reveal(secret: SecretStr | None) -> str | None:
    """The text of a secret, at the moment it is sent."""
    return None if secret is None else secret.get_secret_value()
