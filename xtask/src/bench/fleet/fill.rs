//! Many apps, made by several clients of the API.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Image, wait_until};
use serde_json::{Value, json};

use super::{CLIENTS, PATIENCE};

const PORT: u16 = 8081;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What becomes of the Machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Kind {
    /// Made, and never started.
    Stopped,
    /// Started, and never put to sleep.
    Awake,
    /// Frozen when idle.
    Suspend,
    /// Stopped when idle.
    Stop,
}

/// Makes apps of one image.
pub(in crate::bench) struct Filler {
    manifest: Vec<u8>,
    /// `auto_stop_after` of those that are put to sleep.
    pub(in crate::bench) after: String,
    /// Megabytes that each program holds.
    pub(in crate::bench) held: usize,
}

pub(in crate::bench) fn name(number: usize) -> String {
    format!("app-{number}")
}

impl Filler {
    /// Brings the image in, by an app that is removed again.
    pub(in crate::bench) fn new(host: &Host) -> Result<Self> {
        let image = Image::hello(PORT)?.write(&host.dir().join("image"))?;
        let text = format!("app = 'first'\n[build]\n  image = '{image}'\n");
        let dir = host.app_dir("first", &text)?;
        let launch =
            ["launch", "--flycast", "--ha=false", "--copy-config", "--name", "first", "--yes"];
        host.fly_in(&dir, &launch)?.ok()?;
        let machines = host.api("/v1/apps/first/machines")?;
        let digest = machines[0]["image_ref"]["digest"].as_str().context("no digest")?.to_owned();
        let path = format!("/v2/first/manifests/{digest}");
        let manifest = host.request("GET", &path, MANIFEST, &[])?;
        ensure!(manifest.status == 200, "{manifest:?}");
        let filler = Self { manifest: manifest.body.into_bytes(), after: "1h".to_owned(), held: 0 };
        // Its layers stay for the apps that now name them.
        filler.make(host, "keeper", 0, Kind::Stopped)?;
        host.fly(&["apps", "destroy", "first", "--yes"])?.ok()?;
        Ok(filler)
    }

    /// Makes `apps` of so many Machines each.
    pub(in crate::bench) fn fill(
        &self,
        host: &Host,
        apps: usize,
        machines: usize,
        kind: Kind,
    ) -> Result<()> {
        each(apps, |number| self.make(host, &name(number), machines, kind))
    }

    /// Makes those of `apps` that are not among the first, of one Machine each.
    pub(in crate::bench) fn fill_from(
        &self,
        host: &Host,
        first: usize,
        apps: usize,
        kind: Kind,
    ) -> Result<()> {
        each(apps - first, |number| self.make(host, &name(first + number), 1, kind))
    }

    /// Destroys them.
    pub(in crate::bench) fn empty(&self, host: &Host, apps: usize) -> Result<()> {
        each(apps, |number| {
            let path = format!("/v1/apps/{}?force=true", name(number));
            let answer = host.request("DELETE", &path, "application/json", &[])?;
            ensure!(matches!(answer.status, 200 | 202), "DELETE {path}: {answer:?}");
            Ok(())
        })
    }

    pub(in crate::bench) fn make(
        &self,
        host: &Host,
        app: &str,
        machines: usize,
        kind: Kind,
    ) -> Result<()> {
        post(host, "/v1/apps", &json!({"name": app}))?;
        let path = format!("/v2/{app}/manifests/b");
        let pushed = host.request("PUT", &path, MANIFEST, &self.manifest)?;
        ensure!(pushed.status == 201, "PUT {path}: {pushed:?}");
        post(host, &format!("/v1/apps/{app}/ip_assignments"), &json!({"type": "private_v6"}))?;
        for _ in 0..machines {
            let input =
                json!({"skip_launch": kind == Kind::Stopped, "config": self.config(app, kind)});
            post(host, &format!("/v1/apps/{app}/machines"), &input)?;
        }
        Ok(())
    }

    /// A config as `fly deploy` makes it.
    fn config(&self, app: &str, kind: Kind) -> Value {
        let autostop = match kind {
            Kind::Awake => "off",
            Kind::Suspend => "suspend",
            Kind::Stop | Kind::Stopped => "stop",
        };
        json!({
            "env": {
                "FLY_PROCESS_GROUP": "app", "PRIMARY_REGION": "lcl", "HOLD_MB": self.held.to_string(),
            },
            "image": format!("registry.perch/{app}:b"),
            "metadata": {
                "fly_platform_version": "v2", "fly_process_group": "app", "fly_release_version": "1",
            },
            "services": [{
                "protocol": "tcp", "internal_port": PORT,
                "ports": [{"port": 80, "handlers": ["http"]}],
                "autostop": autostop, "autostart": true, "min_machines_running": 0,
                "auto_stop_after": self.after,
            }],
            "restart": {"policy": "on-failure"},
        })
    }

    /// Asks this of the first Machine of each app.
    pub(in crate::bench) fn each_machine(
        &self,
        host: &Host,
        apps: usize,
        verb: &str,
    ) -> Result<()> {
        each(apps, |number| {
            let path = format!("/v1/apps/{}/machines", name(number));
            let machines = host.api(&path)?;
            let id = machines[0]["id"].as_str().context("no Machine")?;
            post(host, &format!("{path}/{id}/{verb}"), &json!({}))
        })
    }

    /// Waits until the Machines of all apps are in this state.
    pub(in crate::bench) fn await_all(&self, host: &Host, apps: usize, state: &str) -> Result<()> {
        each(apps, |number| {
            let path = format!("/v1/apps/{}/machines", name(number));
            wait_until(&format!("{} to be {state}", name(number)), PATIENCE, || {
                let machines = host.api(&path)?;
                let all = machines.as_array().context("not a list")?;
                Ok(all.iter().all(|machine| machine["state"] == state).then_some(()))
            })
        })
    }
}

/// Does this for each number, several at a time.
pub(in crate::bench) fn each(count: usize, act: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if count <= number {
                    return Ok(());
                }
                act(number)?;
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        clients.into_iter().try_for_each(join)
    })
}

fn post(host: &Host, path: &str, body: &Value) -> Result<()> {
    let answer = host.request("POST", path, "application/json", body.to_string().as_bytes())?;
    ensure!(matches!(answer.status, 200 | 201), "POST {path}: {answer:?}");
    Ok(())
}
