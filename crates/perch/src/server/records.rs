//! What the server stores: one record type per kind, as JSON under a key of its own.
//!
//! These are storage types: a change here is a migration. Wire types and domain types are others;
//! a Machine's config is kept exactly as its client sent it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use perch_api::wire::{AddressIntent, IpKind, ReleaseStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::secrets::vault::Sealed;
use super::stored_config::StoredConfig;

/// A private network of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    /// The 32 bits after `fdaa`; never 0, never reused (PN-11).
    pub(crate) id: u32,
    /// Slug of its organization.
    pub(crate) org: String,
    /// `default`, or a name that somebody chose.
    pub(crate) name: String,
}

/// An app with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppRecord {
    pub(crate) name: String,
    /// Grows by one with each app; for clients that want a number.
    pub(crate) number: i32,
    pub(crate) org: String,
    /// Name of its network within the organization.
    pub(crate) network: String,
    pub(crate) network_id: u32,
    /// Which addresses it gets at its first deploy (FC-16).
    pub(crate) intent: AddressIntent,
    /// RFC 3339.
    pub(crate) created_at: String,
    /// In order of allocation.
    pub(crate) ips: Vec<IpRecord>,
    /// First of the host ids of its Machines' user namespaces is derived from it.
    pub(crate) uid_slot: u32,
    /// Whether it is being destroyed: nothing is added to it any more, and its addresses refuse.
    #[serde(default)]
    pub(crate) going: bool,
    /// Ids of the volumes that somebody wants destroyed with it.
    #[serde(default)]
    pub(crate) going_volumes: Vec<String>,
    /// Grows with each change of its secrets; 0 = there never was one.
    #[serde(default)]
    pub(crate) secrets_version: u64,
}

/// A value that a secret had from one version of its app's secrets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecretRecord {
    pub(crate) app: String,
    pub(crate) name: String,
    pub(crate) version: u64,
    /// `None` from the version on in which it was unset.
    pub(crate) value: Option<Sealed>,
    /// Length of the value.
    pub(crate) bytes: usize,
    pub(crate) digest: String,
    /// When the name was first set, `2006-01-02T15:04:05Z`.
    pub(crate) created_at: String,
    /// When this value was.
    pub(crate) updated_at: String,
}

impl SecretRecord {
    /// App, name and version.
    pub(crate) fn key(&self) -> (String, String, u64) {
        (self.app.clone(), self.name.clone(), self.version)
    }
}

/// An address of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IpRecord {
    pub(crate) ip: IpAddr,
    pub(crate) kind: IpKind,
    /// RFC 3339.
    pub(crate) created_at: String,
    /// For private ones: organization, name and id of the network that may call it.
    pub(crate) caller: Option<NetworkRecord>,
}

/// An address that must not be given again for a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetiredRecord {
    pub(crate) ip: IpAddr,
    /// Seconds since 1970.
    pub(crate) released_at: i64,
}

/// Where a Machine is going; restored after a restart (DESIGN 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    /// Up, or to be brought back.
    Up,
    /// Down.
    Down,
    /// Out.
    Gone,
}

/// What must survive of a Machine's life (`perch_core::lifecycle::Stored`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LifeRecord {
    /// State in the words of the API.
    pub(crate) state: String,
    /// Number of its last run; 0 = never started.
    pub(crate) run: u64,
    pub(crate) wish: Wish,
}

/// What was last done for a Machine's schedule (`perch_core::schedule::Taken`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScheduleRecord {
    /// Seconds since 1970.
    pub(crate) last: i64,
    pub(crate) run: u64,
}

/// A Machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) config: StoredConfig,
    /// Counts configs, from 1.
    pub(crate) config_version: u64,
    /// Changes with each config.
    pub(crate) instance_id: String,
    /// Digest of the image's manifest.
    pub(crate) image: String,
    pub(crate) private_ip: Ipv6Addr,
    /// The Machine's end of its private link.
    pub(crate) link_ip: Ipv4Addr,
    pub(crate) cordoned: bool,
    /// Version of its app's secrets that it starts with; 0 = none.
    #[serde(default)]
    pub(crate) secrets: u64,
    pub(crate) life: LifeRecord,
    /// Absent without a schedule, and in records of servers that knew none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schedule: Option<ScheduleRecord>,
    /// `2006-01-02T15:04:05Z`.
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) id: String,
    /// It may be gone; an app of this name in `org` finds the volume again.
    pub(crate) app: String,
    pub(crate) org: String,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) size_gb: u64,
    /// [`VolumeRecord::CREATED`] or [`VolumeRecord::GOING`].
    pub(crate) state: String,
    /// Who has it, as long as that is there.
    pub(crate) machine: Option<String>,
    /// Seconds since 1970.
    pub(crate) created_at: i64,
    /// Days.
    pub(crate) snapshot_retention: u64,
    pub(crate) daily_snapshots: bool,
}

impl VolumeRecord {
    pub(crate) const CREATED: &str = "created";
    /// Somebody asked for its end; its files may be gone.
    pub(crate) const GOING: &str = "pending_destroy";

    /// Whether it is not on its way out.
    pub(crate) fn is_there(&self) -> bool {
        self.state != Self::GOING
    }

    /// The same on its way out; nobody has it any more.
    pub(crate) fn going(&self) -> Self {
        Self { state: Self::GOING.to_owned(), machine: None, ..self.clone() }
    }
}

/// A copy of a volume as of one moment; it may outlive the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) id: String,
    pub(crate) volume: String,
    pub(crate) app: String,
    pub(crate) org: String,
    /// The volume's name.
    pub(crate) name: String,
    /// What it took on the disk when it was made.
    pub(crate) bytes: u64,
    /// The volume's size.
    pub(crate) size_gb: u64,
    /// Seconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) retention_days: u64,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReleaseRecord {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(crate) version: u64,
    pub(crate) status: ReleaseStatus,
    pub(crate) strategy: String,
    pub(crate) user: String,
    pub(crate) created_at: String,
    pub(crate) image: String,
    pub(crate) definition: Value,
    /// Who leads it; absent in records of servers that knew no such leases.
    #[serde(default)]
    pub(crate) lease: Option<ReleaseLease>,
    /// Whether it ever ran: one that was given up before has changed nothing.
    #[serde(default = "yes")]
    pub(crate) begun: bool,
}

/// The right to deploy an app, for as long as its holder is heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReleaseLease {
    pub(crate) owner: String,
    /// Seconds that it is good for after each word of its holder.
    pub(crate) ttl: u64,
    /// Seconds since 1970.
    pub(crate) expires_at: i64,
}

fn yes() -> bool {
    true
}

/// A lease on a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) machine: String,
    pub(crate) nonce: String,
    /// Seconds since 1970.
    pub(crate) expires_at: i64,
    pub(crate) owner: String,
    pub(crate) description: String,
}

/// That a Machine is at work though no connection shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BusyRecord {
    pub(crate) machine: String,
    /// The run that said so.
    pub(crate) run: u64,
    /// Seconds since 1970.
    pub(crate) until: i64,
    pub(crate) reason: String,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) id: String,
    pub(crate) name: String,
    /// SHA-256 of the whole token, in hexadecimal.
    pub(crate) hash: String,
    /// The only organization that it is good for; given whenever `app` is.
    pub(crate) org: Option<String>,
    /// The only app that it is good for.
    pub(crate) app: Option<String>,
    pub(crate) read_only: bool,
    /// Seconds since 1970.
    pub(crate) created_at: i64,
    /// Seconds since 1970; `None` = when it is revoked.
    pub(crate) expires_at: Option<i64>,
}

impl AppRecord {
    /// Its addresses in order of allocation.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().map(|ip| ip.ip).collect()
    }
}

impl MachineRecord {
    /// Its process group (MA-38).
    pub(crate) fn group(&self) -> String {
        let view = self.config.view();
        view.metadata.get("fly_process_group").cloned().unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An app in network 1 without addresses.
    pub(crate) fn app(name: &str) -> AppRecord {
        AppRecord {
            name: name.to_owned(),
            number: 1,
            org: "personal".to_owned(),
            network: "default".to_owned(),
            network_id: 1,
            intent: AddressIntent::default(),
            created_at: String::new(),
            ips: Vec::new(),
            uid_slot: 0,
            going: false,
            going_volumes: Vec::new(),
            secrets_version: 0,
        }
    }

    /// The same with private addresses.
    pub(crate) fn app_at(name: &str, ips: &[&str]) -> AppRecord {
        let record = |ip: &&str| IpRecord {
            ip: ip.parse().expect("an address"),
            kind: IpKind::PrivateV6,
            created_at: String::new(),
            caller: None,
        };
        AppRecord { ips: ips.iter().map(record).collect(), ..app(name) }
    }

    /// A secret's value from a version on; unset from there on without one.
    pub(crate) fn secret(app: &str, name: &str, version: u64, value: Option<&str>) -> SecretRecord {
        SecretRecord {
            app: app.to_owned(),
            name: name.to_owned(),
            version,
            value: value.map(Sealed::pretended),
            bytes: value.map_or(0, str::len),
            digest: String::new(),
            created_at: String::new(),
            updated_at: String::new(),
        }
    }

    /// A release that is complete.
    pub(crate) fn release(app: &str, version: u64, image: &str) -> ReleaseRecord {
        ReleaseRecord {
            id: format!("{app}-{version}"),
            app: app.to_owned(),
            version,
            status: ReleaseStatus::Complete,
            strategy: String::new(),
            user: String::new(),
            created_at: String::new(),
            image: image.to_owned(),
            definition: Value::Null,
            lease: None,
            begun: true,
        }
    }

    /// A volume of the app `web`, made in 1970.
    pub(crate) fn volume(id: &str, name: &str, machine: Option<&str>) -> VolumeRecord {
        VolumeRecord {
            id: id.to_owned(),
            app: "web".to_owned(),
            org: "personal".to_owned(),
            name: name.to_owned(),
            region: "lcl".to_owned(),
            size_gb: 1,
            state: VolumeRecord::CREATED.to_owned(),
            machine: machine.map(str::to_owned),
            created_at: 0,
            snapshot_retention: 5,
            daily_snapshots: false,
        }
    }

    /// A snapshot of it.
    pub(crate) fn snapshot(id: &str, volume: &str, created_at: i64) -> SnapshotRecord {
        SnapshotRecord {
            id: id.to_owned(),
            volume: volume.to_owned(),
            app: "web".to_owned(),
            org: "personal".to_owned(),
            name: "data".to_owned(),
            bytes: 0,
            size_gb: 1,
            created_at,
            retention_days: 5,
        }
    }

    /// A Machine of the app `web` that was never started.
    pub(crate) fn machine(id: &str) -> MachineRecord {
        MachineRecord {
            id: id.to_owned(),
            app: "web".to_owned(),
            name: String::new(),
            region: "lcl".to_owned(),
            config: serde_json::from_str(r#"{"image":"x"}"#).expect("a config"),
            config_version: 1,
            instance_id: String::new(),
            image: String::new(),
            private_ip: Ipv6Addr::LOCALHOST,
            link_ip: Ipv4Addr::LOCALHOST,
            cordoned: false,
            secrets: 0,
            life: LifeRecord { state: "created".to_owned(), run: 0, wish: Wish::Down },
            schedule: None,
            created_at: String::new(),
            updated_at: String::new(),
        }
    }
}
