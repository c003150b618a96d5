//! Regions, organizations, and facts about the server.

use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A region.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Region {
    /// Short code, such as `lcl`.
    pub code: String,
    /// Name for people.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Whether private peers can join here.
    pub gateway_available: bool,
    /// Always false.
    pub requires_paid_plan: bool,
    /// Whether new Machines are refused here.
    pub deprecated: bool,
    /// Fly's field; 0, since what a host has room for is not counted in Machines.
    pub capacity: i64,
    /// The part of the world, such as `europe`; empty = not known.
    pub geo_region: String,
    /// Always false: there are no managed databases.
    pub mpg_available: bool,
}

/// Answer of `GET /v1/platform/regions`. Capital letters are Fly's.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RegionPage {
    /// All regions.
    #[serde(rename = "Regions")]
    pub regions: Vec<Region>,
    /// Code of the caller's nearest one.
    #[serde(rename = "Nearest")]
    pub nearest: String,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Organization {
    /// Stable id.
    pub id: String,
    /// Stable number.
    pub internal_numeric_id: u64,
    /// Short name used in commands.
    pub slug: String,
    /// The slug behind an alias such as `personal`.
    pub raw_slug: String,
    /// Name for people.
    pub name: String,
    /// Always false.
    pub paid_plan: bool,
    /// Whether it is the default one.
    pub personal: bool,
    /// Always `CURRENT`.
    pub billing_status: String,
    /// Always true: flyctl turns high availability off without it.
    pub billable: bool,
    /// Always false.
    pub provisions_beta_extensions: bool,
    /// Always empty.
    pub remote_builder_image: String,
}

impl Default for Organization {
    fn default() -> Self {
        Self {
            id: String::new(),
            internal_numeric_id: 0,
            slug: String::new(),
            raw_slug: String::new(),
            name: String::new(),
            paid_plan: false,
            personal: false,
            billing_status: "CURRENT".to_owned(),
            billable: true,
            provisions_beta_extensions: false,
            remote_builder_image: String::new(),
        }
    }
}

/// `{"organization": …}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OrganizationAnswer {
    /// The organization.
    pub organization: Organization,
}

/// `{"organizations": […]}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OrganizationPage {
    /// All of them, by slug.
    pub organizations: Vec<Organization>,
}

/// Answer of `GET /perch/v1/info`: facts about this server. Extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Info {
    /// Version of the server, such as `0.1.0`.
    pub version: String,
    /// Region of this host.
    pub region: String,
    /// Where the server keeps everything.
    pub data_dir: PathBuf,
    /// Apps are `APP.<public_domain>` on the shared IPv4.
    pub public_domain: String,
    /// Addresses that the host itself has on the private networks.
    pub host_addresses: Vec<IpAddr>,
    /// The shared public IPv4, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_v4: Option<IpAddr>,
    /// Slug of the default organization.
    pub default_org: String,
    /// Process id of the server.
    pub pid: u32,
}
