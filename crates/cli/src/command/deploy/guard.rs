//! The right to deploy an app: its release in progress, which no second deploy can begin beside.

use super::super::Context;
use super::{Job, leases};
use crate::failure::{Failure, Outcome};
use crate::flytoml;
use perch_api::ClientError;
use perch_api::wire::{CreateRelease, Release, ReleaseStatus, UpdateRelease};
use perch_core::deploy::Strategy;
use std::cell::Cell;
use std::time::Duration;

/// A release that this deploy leads. Before it, nothing may be looked at that a deploy decides by.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) release: Release,
    /// What it was last moved to.
    status: Cell<ReleaseStatus>,
    /// Between two words to the server.
    pause: Duration,
}

impl Guard {
    /// Begins a release. When somebody else deploys the app, the failure says who, and nothing has changed.
    pub(super) async fn begin(context: &Context<'_>, job: &Job) -> Outcome<Self> {
        let strategy = match job.options.settings.strategy {
            Strategy::Rolling => "ROLLING",
            Strategy::Immediate => "IMMEDIATE",
        };
        let input = CreateRelease {
            app_name: job.app.name.clone(),
            definition: serde_json::Value::Object(flytoml::to_json(&job.config)),
            image: job.image.reference.clone(),
            strategy: strategy.to_owned(),
            lease_ttl: job.options.lease.as_secs(),
        };
        match context.client.create_release(&input).await {
            Ok(release) => Ok(Self {
                release,
                status: Cell::new(ReleaseStatus::Pending),
                pause: leases::refresh_pause(job.options.lease),
            }),
            Err(error) => Err(refused(context, &job.app.name, error).await),
        }
    }

    /// Says that the rollout begins.
    pub(super) async fn run(&self, context: &Context<'_>) -> Outcome {
        self.status.set(ReleaseStatus::Running);
        self.check(context).await
    }

    /// Asks whether this deploy still has the right to go on: one that was held up for long, such as by a laptop's
    /// sleep, may have been given up, and another one may be at work. To be called before every change.
    /// Ctrl-C takes the right too.
    pub(super) async fn check(&self, context: &Context<'_>) -> Outcome {
        context.interrupt.check()?;
        self.tell(context, self.status.get()).await.map_err(lost)
    }

    /// Keeps the release in progress; answers only when the right is lost. A server that is away may come back.
    pub(super) async fn until_lost(&self, context: &Context<'_>) -> Failure {
        loop {
            tokio::time::sleep(self.pause).await;
            match self.tell(context, self.status.get()).await {
                Ok(()) => {}
                Err(error) if is_lost(&error) => return lost(error),
                Err(error) => {
                    let version = self.release.version;
                    context.console.note(format!("could not refresh release {version}: {error}"));
                }
            }
        }
    }

    /// Says how the release ended; if that fails the deploy's own result still stands.
    pub(super) async fn close(&self, context: &Context<'_>, result: &Outcome) {
        let status = match result {
            Ok(()) => ReleaseStatus::Complete,
            Err(failure) if failure.is_interrupted() => ReleaseStatus::Interrupted,
            Err(_) => ReleaseStatus::Failed,
        };
        match self.tell(context, status).await {
            Ok(()) => {}
            // That was the failure; it is said already.
            Err(error) if is_lost(&error) && result.is_err() => {}
            Err(error) => {
                let version = self.release.version;
                let text = format!("could not record the end of release {version}: {error}");
                context.console.note(text);
            }
        }
    }

    async fn tell(&self, context: &Context<'_>, status: ReleaseStatus) -> Result<(), ClientError> {
        let update = UpdateRelease { status, metadata: serde_json::Value::Null };
        context.client.update_release(&self.release.id, &update).await.map(drop)
    }
}

/// The release is another deploy's by now, or went with its app.
fn is_lost(error: &ClientError) -> bool {
    matches!(error.status(), Some(404 | 409))
}

fn lost(error: ClientError) -> Failure {
    let is_lost = is_lost(&error);
    let failure = Failure::from(error).context("this deploy may not go on");
    if !is_lost {
        return failure;
    }
    failure.hint("Look at the app with `fly status`, and deploy again if it is not as it should be")
}

/// Says who deploys the app, if the server knows more than its refusal told.
async fn refused(context: &Context<'_>, app: &str, error: ClientError) -> Failure {
    let conflict = error.status() == Some(409);
    let failure = Failure::from(error).context(format!("could not begin a release of {app}"));
    if !conflict {
        return failure;
    }
    let newest = context.client.list_releases(app, 1).await.unwrap_or_default();
    let who = newest.first().map_or_else(|| "somebody else".to_owned(), holder);
    failure.hint(leases::changing(&who))
}

fn holder(release: &Release) -> String {
    let since = release.created_at.parse::<jiff::Timestamp>();
    let since = since.map(|time| time.strftime("%H:%M:%S UTC").to_string());
    let since = since.unwrap_or_else(|_| release.created_at.clone());
    format!("{} with release {} (since {since})", release.user, release.version)
}
