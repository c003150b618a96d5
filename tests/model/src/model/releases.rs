//! Releases: one deploy at a time has an app.

use perch_api::wire::ReleaseStatus;
use serde_json::Value;

use super::{After, App, Effect, Model, Refusal, Release, refuse};

/// A shorter right to deploy is over before the next step.
const LED_SECONDS_MIN: u64 = 10;

impl Release {
    fn is_in_progress(&self) -> bool {
        matches!(self.status, ReleaseStatus::Pending | ReleaseStatus::Running)
    }
}

impl App {
    /// Whether a lease on one of its Machines keeps its deploy alive: all callers here are one process.
    fn has_lease(&self) -> bool {
        self.machines.iter().any(|machine| machine.lease.is_some())
    }
}

impl Model {
    pub(super) fn create_release(
        &self,
        name: &str,
        image: &str,
        definition: &Value,
        ttl: u64,
    ) -> After {
        let mut after = self.clone();
        let app = after.app_mut(name)?;
        let leased = app.has_lease();
        let leads = |release: &&Release| release.is_in_progress() && (release.led || leased);
        if let Some(leader) = app.releases.iter().rev().find(leads) {
            let version = leader.version;
            let text = format!(
                "lease on app {name} currently held by … since … (release {version}), expires at … unless refreshed"
            );
            return refuse(409, text);
        }
        for release in app.releases.iter_mut().filter(|release| release.is_in_progress()) {
            release.status = ReleaseStatus::Interrupted;
        }
        let version = app.releases.last().map_or(0, |newest| newest.version) + 1;
        app.releases.push(Release {
            id: None,
            version,
            status: ReleaseStatus::Pending,
            image: image.to_owned(),
            definition: definition.clone(),
            begun: false,
            led: LED_SECONDS_MIN <= ttl,
        });
        Ok(Effect::of(after))
    }

    pub(super) fn update_release(&self, id: &str, status: ReleaseStatus) -> After {
        let mut after = self.clone();
        let is_it = |release: &Release| release.id.as_deref() == Some(id);
        let unknown = || Refusal::new(404, format!("there is no release {id}"));
        let found = after.apps.iter_mut().find(|(_, app)| app.releases.iter().any(is_it));
        let (name, app) = found.ok_or_else(unknown)?;
        let newest = app.releases.last().map_or(0, |release| release.version);
        let release = app.releases.iter_mut().find(|it| is_it(it)).ok_or_else(unknown)?;
        release.check_move(name, newest, status)?;
        let late = (release.status, status) == (ReleaseStatus::Running, ReleaseStatus::Pending);
        release.status = if late { ReleaseStatus::Running } else { status };
        release.begun |= matches!(release.status, ReleaseStatus::Running | ReleaseStatus::Complete);
        Ok(Effect::of(after))
    }
}

impl Release {
    fn check_move(&self, app: &str, newest: u64, to: ReleaseStatus) -> Result<(), Refusal> {
        let version = self.version;
        let goes_on = matches!(to, ReleaseStatus::Pending | ReleaseStatus::Running);
        match self.status {
            ReleaseStatus::Interrupted if version < newest => refuse(
                409,
                format!(
                    "release {version} of app {app} was interrupted: nothing was heard of its deploy for too long, and \
                     release {newest} has taken its place"
                ),
            ),
            ReleaseStatus::Complete | ReleaseStatus::Failed if goes_on => {
                refuse(409, format!("release {version} of app {app} has ended"))
            }
            _ => Ok(()),
        }
    }
}
