"""Settings: one typed model, read from a TOML file, environment variables and flags."""

from aerodrome.config.load import find_config, load_settings, settings_of
from aerodrome.config.provider_settings import ProviderSettings
from aerodrome.config.settings import Settings

__all__ = ["ProviderSettings", "Settings", "find_config", "load_settings", "settings_of"]
