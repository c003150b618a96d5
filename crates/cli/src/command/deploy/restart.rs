//! A release without a new configuration: Machines begin anew as they are, with the newest secrets.

use super::super::Context;
use super::{
    Job, LEASE_DEFAULT, Looks, MAX_UNAVAILABLE_DEFAULT, Options, WAIT_TIMEOUT_DEFAULT, Work,
};
use super::{max_unavailable, rollout, strategy};
use crate::args::Only;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Config};
use perch_api::wire::{App, ImageInfo, Release};
use perch_core::deploy::{Availability, Scope, Settings};
use std::path::Path;

/// Updates the app's Machines: those awake start again, those asleep stay asleep.
pub(in crate::command) async fn restart(
    context: &Context<'_>,
    app: App,
    smoke_checks: bool,
) -> Outcome {
    let (config, image) = match deployed(context, &app.name).await? {
        Some((config, release)) => (config, release.image_ref),
        None => (Config { app: Some(app.name.clone()), ..Config::default() }, String::new()),
    };
    let deploy = config.deploy.clone().unwrap_or_default();
    let settings = Settings {
        strategy: strategy(context, deploy.strategy.as_deref().unwrap_or_default())?,
        max_unavailable: max_unavailable(
            deploy.max_unavailable.unwrap_or(MAX_UNAVAILABLE_DEFAULT),
        )?,
        concurrent_max: 8,
        availability: Availability::Single,
        scope: Scope::UpdateOnly,
    };
    let wait = deploy.wait_timeout.and_then(flytoml::GoDuration::length);
    let options = Options {
        settings,
        wait_timeout: wait.unwrap_or(WAIT_TIMEOUT_DEFAULT),
        lease: LEASE_DEFAULT,
        looks: if smoke_checks { Looks::All } else { Looks::ListeningOnly },
        only: Only::default(),
        flycast: false,
        no_public_ips: false,
        volume_gb: 0,
        yes: false,
    };
    let image = ImageInfo { reference: image, ..ImageInfo::default() };
    rollout::run(context, &Job { app, config, image, options, work: Work::Restart }).await
}

/// The configuration of the newest release, which is not what lies in this directory; `None` before the first.
pub(in crate::command) async fn deployed(
    context: &Context<'_>,
    app: &str,
) -> Outcome<Option<(Config, Release)>> {
    let release = match context.client.current_release(app).await {
        Err(error) if error.status() == Some(404) => return Ok(None),
        found => found?,
    };
    let definition = release.definition.clone().unwrap_or_default();
    let read = flytoml::parse(Path::new("fly.json"), &definition.to_string());
    let read = read.map_err(|error| {
        Failure::from(error).context(format!("the configuration of release {}", release.version))
    })?;
    Ok(Some((read.config, release)))
}
