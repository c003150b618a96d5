//! `deploy`: from a configuration file and an image to Machines that run it.
//!
//! ```text
//! verify config ─► find or build image ─► push ─► release ─► leases ─► addresses ─► rollout ─► ending
//! ```
//!
//! Everything that can be wrong on the caller's side is found before the server changes anything. The
//! order of changes is `core`'s plan; [`rollout`] carries it out. The release is what only one deploy of an
//! app can have; what is planned is looked at after it. A deploy that dies leaves leases that end by
//! themselves and a release that the server marks interrupted.

mod addresses;
mod ending;
mod files;
mod guard;
mod health;
mod image;
mod leases;
mod machine_config;
mod only;
mod ports;
mod progress;
mod restart;
mod rollout;
mod volumes;
mod watch;

use super::Context;
use crate::args::{Deploy, Only, Rollout};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Config, Vm, format_duration};
use perch_api::wire::{AddressIntent, App, ImageInfo};
use perch_core::deploy::{Availability, MaxUnavailable, Scope, Settings, Strategy};
use std::path::Path;
use std::time::Duration;

pub(super) use image::{OpenImage, bring, build, open, open_named, pairs, tag};
pub(super) use leases::Leases;
pub(super) use machine_config::group_config;
pub(super) use restart::{deployed, restart};

const WAIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Long enough for a few lost refreshes, short enough that a dead deploy blocks nobody for long (MA-63).
const LEASE_DEFAULT: Duration = Duration::from_secs(13);
/// Longer than anybody waits.
const WITHOUT_END: Duration = Duration::from_secs(365 * 24 * 3600);
const MAX_UNAVAILABLE_DEFAULT: f64 = 0.33;

/// What to deploy, all settings resolved.
pub(super) struct Job {
    pub(super) app: App,
    pub(super) config: Config,
    pub(super) image: ImageInfo,
    pub(super) options: Options,
    pub(super) work: Work,
}

/// What is done to an app's Machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// They become what the configuration says.
    Deploy,
    /// Those that are there stay as they are, and begin anew with the newest secrets (DE-70).
    Restart,
}

/// How to deploy.
#[derive(Debug, Clone)]
pub(super) struct Options {
    settings: Settings,
    wait_timeout: Duration,
    lease: Duration,
    looks: Looks,
    only: Only,
    flycast: bool,
    no_public_ips: bool,
    /// Of volumes that the first deploy makes; 0 = not said.
    volume_gb: u64,
    /// Whether every question is answered already.
    yes: bool,
}

/// What is looked at once a Machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    /// Whether it crashes, and for the first of a group where it listens.
    All,
    /// Where the first of a group listens.
    ListeningOnly,
    /// Nothing (`--detach`).
    None,
}

/// Runs the command.
pub(super) async fn run(context: &Context<'_>, args: Deploy) -> Outcome {
    let env = super::entered(context.env, args.dir.as_deref().unwrap_or(Path::new("")))?;
    let context = context.entering(&env);
    context.console.styled_note(Style::Green, "==> Verifying app config");
    let (loaded, name) = find_config(&context, &args).await?;
    super::config::report(&context, &loaded)?;
    let mut config = loaded.config;
    config.app = Some(name.clone());
    let region = args.rollout.primary_region.clone().or(config.primary_region.take());
    config.primary_region = Some(here(&context, region).await?);
    apply_flags(&mut config, &args.rollout)?;
    if args.skip_release_command
        && let Some(deploy) = &mut config.deploy
    {
        deploy.release_command = None;
    }
    refuse_unsupported(&config)?;
    let scope = if args.update_only { Scope::UpdateOnly } else { Scope::Everything };
    let options = Options::resolve(&context, &config, &args.rollout, scope)?;
    let options = Options { yes: args.yes.yes, ..options };
    context.console.styled_note(Style::Faint, "--> Verified app config");
    let app = find_app(&context, &name).await?;
    let base = loaded.path.parent().unwrap_or(&env.dir).to_owned();
    let image = open(&context, &config, &args.rollout, &base)?;
    if args.rollout.build.build_only && !args.rollout.build.push {
        return Ok(());
    }
    let image = bring(&context, &name, image).await?;
    if args.rollout.build.build_only {
        return Ok(());
    }
    deploy(&context, Job { app, config, image, options, work: Work::Deploy }).await
}

/// The local file, or without one what was deployed last, and the app's name.
async fn find_config(context: &Context<'_>, args: &Deploy) -> Outcome<(flytoml::Loaded, String)> {
    let given = context.given_app(&args.app);
    if let Some(loaded) = context.config_file(&args.app)? {
        let name = given.or(loaded.config.app.clone()).filter(|name| !name.is_empty());
        return Ok((loaded, name.ok_or_else(super::no_app)?));
    }
    let name = given.ok_or_else(no_file)?;
    find_app(context, &name).await?;
    let loaded = super::config::deployed(context, &args.app).await?;
    // Paths in it start from where the user is.
    let path = context.env.dir.join(&loaded.path);
    Ok((flytoml::Loaded { path, ..loaded }, name))
}

/// Carries out a job whose image the server has.
pub(super) async fn deploy(context: &Context<'_>, job: Job) -> Outcome {
    note_what_is_not_there(context, &job.config);
    warn_about_https(context, &job);
    rollout::run(context, &job).await?;
    ending::print(context, &job).await
}

/// The region if it exists here, else the nearest, said: files come from elsewhere, with the codes of a
/// platform that has more of them.
async fn here(context: &Context<'_>, region: Option<String>) -> Outcome<String> {
    let regions = context.client.list_regions().await?;
    let known = |code: &String| regions.regions.iter().any(|region| region.code == *code);
    match region.filter(|code| !code.is_empty()) {
        Some(code) if known(&code) => return Ok(code),
        Some(code) => {
            let nearest = &regions.nearest;
            context
                .console
                .line(format!("NOTE: region '{code}' does not exist here; using '{nearest}'"));
        }
        None => {}
    }
    Ok(regions.nearest)
}

fn no_file() -> Failure {
    Failure::new("no fly.toml here").hint("Run `fly launch` to write one, or name it with -c PATH")
}

async fn find_app(context: &Context<'_>, name: &str) -> Outcome<App> {
    context.client.get_app(name).await.map_err(|error| match error.status() {
        Some(404) => Failure::new(format!(
            "the app name {name} could not be found, did you create the app or misspell it in the \
             fly.toml file or via -a?"
        ))
        .hint(format!("Create it with `fly apps create {name}` or `fly launch`")),
        _ => error.into(),
    })
}

/// Flags win over the file.
pub(super) fn apply_flags(config: &mut Config, rollout: &Rollout) -> Outcome {
    for pair in &rollout.env {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::new(format!("'{pair}' is not NAME=VALUE")).hint("For example `-e LOG=debug`")
        })?;
        config.env.insert(name.to_owned(), value.to_owned());
    }
    if let Some(strategy) = &rollout.strategy {
        config.deploy.get_or_insert_default().strategy = Some(strategy.clone());
    }
    let flags = &rollout.vm;
    let cpus = flags.vm_cpus;
    super::guest::check_flags(flags)?;
    if flags.is_given() {
        config.vm = vec![Vm {
            size: flags.vm_size.clone(),
            memory: flags.vm_memory.clone(),
            cpus,
            cpu_kind: flags.vm_cpu_kind.clone(),
            ..Vm::default()
        }];
        for group in config.groups() {
            config.machine_config(&group)?;
        }
    }
    Ok(())
}

/// What a deploy cannot leave out without running something else than the file says.
pub(super) fn refuse_unsupported(config: &Config) -> Outcome {
    let deploy = config.deploy.as_ref();
    let refused = [
        ("deploy.release_command", deploy.is_some_and(|deploy| deploy.release_command.is_some())),
        ("machine_config", config.machine_config.is_some()),
    ];
    match refused.iter().find(|(_, used)| *used) {
        Some((key, _)) => Err(Failure::new(format!("{key} is not supported yet"))
            .hint(format!("Remove {key} from fly.toml to deploy without it"))),
        None => Ok(()),
    }
}

/// What is left out and said, because the app runs without it.
fn note_what_is_not_there(context: &Context<'_>, config: &Config) {
    if !config.statics.is_empty() {
        context.console.line("NOTE: [[statics]] is not served yet; the app has to");
    }
    for text in ports::unserved(config) {
        context.console.line(format!("NOTE: {text}"));
    }
}

/// At a Flycast address nobody has a certificate to redirect to (FC-22, LI-01).
fn warn_about_https(context: &Context<'_>, job: &Job) {
    let private = job.options.flycast || job.app.address_intent == AddressIntent::Private;
    if private && job.config.http_service.as_ref().is_some_and(|service| service.force_https) {
        context.console.note(
            "WARN force_https = true makes a private app unreachable over http; set force_https = \
             false in [http_service]",
        );
    }
}

impl Options {
    pub(super) fn resolve(
        context: &Context<'_>,
        config: &Config,
        rollout: &Rollout,
        scope: Scope,
    ) -> Outcome<Self> {
        let deploy = config.deploy.clone().unwrap_or_default();
        only::check(&rollout.only, config)?;
        let share = rollout.max_unavailable.or(deploy.max_unavailable);
        let settings = Settings {
            strategy: strategy(context, deploy.strategy.as_deref().unwrap_or_default())?,
            max_unavailable: max_unavailable(share.unwrap_or(MAX_UNAVAILABLE_DEFAULT))?,
            concurrent_max: rollout.concurrent_max(),
            availability: if rollout.ha { Availability::High } else { Availability::Single },
            scope,
        };
        Ok(Self {
            settings,
            wait_timeout: length("wait-timeout", rollout.wait_timeout.as_deref())?
                .or(deploy.wait_timeout.and_then(flytoml::GoDuration::length))
                .unwrap_or(WAIT_TIMEOUT_DEFAULT),
            lease: length("lease-timeout", rollout.lease_timeout.as_deref())?
                .unwrap_or(LEASE_DEFAULT)
                .max(Duration::from_secs(2)),
            looks: match (rollout.detach, rollout.smoke_checks) {
                (true, _) => Looks::None,
                (false, true) => Looks::All,
                (false, false) => Looks::ListeningOnly,
            },
            only: rollout.only.clone(),
            flycast: rollout.flycast,
            no_public_ips: rollout.no_public_ips,
            volume_gb: rollout.volume_initial_size,
            yes: false,
        })
    }

    fn wait_text(&self) -> String {
        format_duration(self.wait_timeout)
    }
}

/// As flyctl reads these flags: a length with a unit, or a number of seconds, or `none`.
fn length(flag: &str, text: Option<&str>) -> Outcome<Option<Duration>> {
    let Some(text) = text else { return Ok(None) };
    if text == "none" {
        return Ok(Some(WITHOUT_END));
    }
    let seconds = text.parse().ok().map(Duration::from_secs);
    let length = seconds.or_else(|| flytoml::parse_duration(text).ok());
    let message = || {
        format!(
            "invalid duration value {text} used for --{flag} flag: valid options are a number of \
             seconds, number with time unit (i.e.: 5m, 180s) or 'none'"
        )
    };
    length.map(|length| Some(length.min(WITHOUT_END))).ok_or_else(|| Failure::new(message()))
}

fn strategy(context: &Context<'_>, word: &str) -> Outcome<Strategy> {
    match word {
        "" | "rolling" => Ok(Strategy::Rolling),
        "immediate" => Ok(Strategy::Immediate),
        "canary" | "bluegreen" => {
            let note = format!("NOTE: strategy '{word}' is not there yet; using rolling");
            context.console.line(note);
            Ok(Strategy::Rolling)
        }
        _ => Err(Failure::new(format!("unknown strategy '{word}'"))
            .hint("Use --strategy rolling or --strategy immediate")),
    }
}

fn max_unavailable(number: f64) -> Outcome<MaxUnavailable> {
    if number >= 1.0 {
        return Ok(MaxUnavailable::Count(number as u32));
    }
    if number > 0.0 {
        return Ok(MaxUnavailable::Share(number));
    }
    Err(Failure::new("the value for --max-unavailable must be > 0")
        .hint(format!("With {number} no Machine would ever be updated; use a count of 1 or more, or a share between 0 and 1")))
}
