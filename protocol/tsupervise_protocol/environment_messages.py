"""The messages that tell of the executor's own set-up: its configuration, and what its folders can do."""

from typing import Annotated

from msgspec import Meta, field

from .messages import Message, SandboxRequest

# --- environmentConfig/read --------------------------------------------------------------------------

KeyPath = Annotated[list[str], Meta(min_length=1)]
"""Names of TOML keys, each inside the one before."""


class EnvironmentConfigReadParams(Message, frozen=True):
    """Which parts of the configuration are wanted; at least one."""

    cwd: str
    """file URI; it need not exist"""
    config_paths: list[KeyPath]
    requirements_paths: list[KeyPath]

    def __post_init__(self) -> None:
        if not (self.config_paths or self.requirements_paths):
            raise ValueError("at least one of configPaths and requirementsPaths must name something")


class ConfigLayer(Message, frozen=True):
    """What one file says of what was asked for."""

    source: str
    """What kind of file, and its path."""
    base_dir: str
    """file URI: where relative paths in it begin"""
    toml: str


class ConfigLayers(Message, frozen=True):
    """Files that say something of what was asked for; a later one overrides those before."""

    layers: list[ConfigLayer]
    cloud_insertion_index: int
    """Where a client puts a layer that it has from elsewhere."""


class EnvironmentConfigReadResult(Message, frozen=True):
    user_home_dir: str | None
    """file URI"""
    codex_home_dir: str
    """file URI"""
    hostname: str
    config: ConfigLayers
    requirements: ConfigLayers


# --- capabilityRoots/discoverV1 ----------------------------------------------------------------------


class CapabilityRoot(Message, frozen=True):
    """A folder that may be or hold plugins and skills. Ids are the client's own and may repeat."""

    id: str
    path: str
    """file URI"""
    sandbox: SandboxRequest | None = None


class DiscoverParams(Message, frozen=True):
    roots: list[CapabilityRoot]


class CapabilityFile(Message, frozen=True):
    path: str
    """file URI"""
    contents: str


class PluginFiles(Message, frozen=True):
    """What belongs to a root that is a plugin."""

    manifest: CapabilityFile
    mcp_config: CapabilityFile | None
    apps_config: CapabilityFile | None


class SkillFiles(Message, frozen=True):
    instructions: CapabilityFile
    metadata: CapabilityFile | None


class DiscoveredRoot(Message, frozen=True):
    """What there is at and below one root."""

    id: str
    path: str
    """file URI, in the client's spelling"""
    plugin: PluginFiles | None = None
    skills: list[SkillFiles] = field(default_factory=list[SkillFiles])
    namespace_manifests: list[CapabilityFile] = field(default_factory=list[CapabilityFile])
    """Of the plugins that skills may belong to: that of the root or above it, then those below."""
    warnings: list[str] = field(default_factory=list[str])
    """What was passed over."""
    error: str | None = None
    """Why nothing else is told."""


class DiscoverResult(Message, frozen=True):
    roots: list[DiscoveredRoot]
    """In the order of the request."""
