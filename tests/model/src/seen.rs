//! Everything that can be seen of a server through its API.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use perch_api::client::{Client, ClientError};
use perch_api::wire::{App, IpAssignment, LeaseData, Machine, MachineFilter, Release, Secret};

/// More releases than any app of ours has.
const RELEASES_MAX: usize = 1_000;

/// A server at one moment, as far as nothing changes while one looks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) apps: BTreeMap<String, SeenApp>,
}

/// An app with all that hangs on it.
#[derive(Debug, Clone)]
pub(crate) struct SeenApp {
    pub(crate) app: App,
    pub(crate) ips: Vec<IpAssignment>,
    pub(crate) machines: Vec<Machine>,
    /// By Machine.
    pub(crate) leases: BTreeMap<String, LeaseData>,
    /// Newest first.
    pub(crate) releases: Vec<Release>,
    pub(crate) current: Option<Release>,
    /// By name.
    pub(crate) secrets: Vec<Secret>,
}

impl Seen {
    /// Looks at everything.
    ///
    /// # Errors
    /// When a call fails; something may just have gone away.
    pub(crate) async fn look(client: &Client) -> Result<Self> {
        let mut seen = Self::default();
        for app in client.list_apps(None).await? {
            let name = app.name.clone();
            let of_app = SeenApp::look(client, app).await;
            seen.apps.insert(name.clone(), of_app.with_context(|| format!("app {name}"))?);
        }
        Ok(seen)
    }
}

impl SeenApp {
    async fn look(client: &Client, app: App) -> Result<Self> {
        let name = &app.name;
        // Also those that are going: what is on its way out is not out.
        let all = MachineFilter { include_deleted: true, ..MachineFilter::default() };
        let machines = client.list_machines(name, &all).await?;
        let mut leases = BTreeMap::new();
        for machine in &machines {
            let lease = unless_absent(client.get_lease(name, &machine.id).await)?;
            leases.extend(lease.map(|lease| (machine.id.clone(), lease.data)));
        }
        Ok(Self {
            ips: client.list_ips(name).await?,
            releases: client.list_releases(name, RELEASES_MAX).await?,
            current: unless_absent(client.current_release(name).await)?,
            secrets: client.list_secrets(name).await?,
            app,
            machines,
            leases,
        })
    }
}

fn unless_absent<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
