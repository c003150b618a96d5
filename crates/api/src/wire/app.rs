//! Apps and their addresses.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{null_default, schema};

/// Which addresses an app gets at its first deploy. Our extension: flyctl forgets `--flycast` after
/// `launch --no-deploy`, we keep the wish with the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressIntent {
    /// One public IPv6 and the shared IPv4.
    #[default]
    Public,
    /// One private IPv6 (Flycast).
    Private,
    /// None.
    None,
}

/// The organization as apps name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OrganizationRef {
    /// Short name used in commands.
    pub slug: String,
    /// Name for people.
    pub name: String,
    /// Stable number.
    pub internal_numeric_id: i32,
}

/// An app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct App {
    /// Stable id; equals the name with Fly.
    pub id: String,
    /// Name, unique on this installation.
    pub name: String,
    /// Stable number.
    pub internal_numeric_id: i32,
    /// `default`, or the name of the custom network.
    pub network: String,
    /// `pending` before the first deploy, `deployed`, or `suspended`.
    pub status: String,
    /// Machines that are not destroyed.
    pub machine_count: u32,
    /// Volumes.
    pub volume_count: u32,
    /// Owner.
    pub organization: OrganizationRef,
    /// Public host name, `APP.<public_domain>`.
    pub hostname: String,
    /// Addresses to give at the first deploy. Extension.
    pub address_intent: AddressIntent,
    /// Creation, RFC 3339.
    pub created_at: String,
    /// Creation of the current release, RFC 3339; absent before the first deploy. Extension, for
    /// `apps list`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_deploy: Option<String>,
    /// Fly's role; empty for ordinary apps.
    #[serde(deserialize_with = "null_default")]
    pub app_role: String,
}

/// Answer of `GET /v1/apps`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AppPage {
    /// How many there are.
    pub total_apps: usize,
    /// All of them, by name.
    pub apps: Vec<App>,
}

/// Body of `POST /v1/apps`. Empty texts mean "not given".
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"]))]
pub struct CreateApp {
    /// Wanted name; Fly's documents say `app_name`.
    #[serde(alias = "app_name", deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::LABEL))]
    pub name: String,
    /// Owner; empty = the default organization.
    #[serde(deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::LABEL_OR_EMPTY), transform = schema::nullable)]
    pub org_slug: String,
    /// Custom network; empty = the organization's default one.
    #[serde(deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::NETWORK_OR_EMPTY), transform = schema::nullable)]
    pub network: String,
    /// Addresses to give at the first deploy. Extension.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub address_intent: AddressIntent,
}

/// Body of `PATCH /v1/apps/{app}`. Extension.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AppPatch {
    /// New wish, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_intent: Option<AddressIntent>,
}

/// What kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IpKind {
    /// Public IPv4 of its own.
    V4,
    /// The public IPv4 that apps share.
    SharedV4,
    /// Public IPv6 of its own.
    V6,
    /// Flycast address.
    PrivateV6,
}

/// The network from which a private address may be used, by names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IpNetwork {
    /// `default`, or a custom network's name.
    pub name: String,
    /// Slug of the network's organization.
    pub organization: String,
}

/// An address of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IpAssignment {
    /// The address.
    pub ip: IpAddr,
    /// Kind. Extension: Fly's REST answer lacks it.
    #[serde(rename = "type")]
    pub kind: IpKind,
    /// Always `global`; empty for the shared address.
    #[serde(default, deserialize_with = "null_default")]
    pub region: String,
    /// Fly's field; empty.
    #[serde(default, deserialize_with = "null_default")]
    pub service_name: String,
    /// Whether other apps use it too.
    #[serde(default)]
    pub shared: bool,
    /// Allocation, RFC 3339; `0001-01-01T00:00:00Z` for the shared address.
    #[serde(default, deserialize_with = "null_default")]
    pub created_at: String,
    /// Which network may call it; absent = everybody. Extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<IpNetwork>,
}

/// Answer of `GET …/ip_assignments`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IpPage {
    /// All of them, in order of allocation.
    pub ips: Vec<IpAssignment>,
}

/// Body of `POST …/ip_assignments`. Empty texts mean "not given".
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AssignIp {
    /// What kind.
    #[serde(rename = "type")]
    pub kind: IpKind,
    /// Ignored: addresses are global here.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub region: String,
    /// For a private address: the organization whose network may call it.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::LABEL_OR_EMPTY), transform = schema::nullable)]
    pub org_slug: String,
    /// For a private address: the network that may call it.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::NETWORK_OR_EMPTY), transform = schema::nullable)]
    pub network: String,
    /// Fly's field; must be empty.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub service_name: String,
}

impl AssignIp {
    /// Asks for an address of this kind, with nothing else said.
    pub fn of_kind(kind: IpKind) -> Self {
        Self {
            kind,
            region: String::new(),
            org_slug: String::new(),
            network: String::new(),
            service_name: String::new(),
        }
    }
}
