//! The commands, one file each, and what they share: which app, which file, which server.

mod apps;
pub(crate) mod auth;
pub(crate) mod checks;
mod completion;
mod config;
mod deploy;
pub(crate) mod dig;
mod guest;
mod ips;
mod launch;
mod logs;
pub(crate) mod machine;
pub(crate) mod orgs;
pub(crate) mod platform;
mod proxy;
pub(crate) mod regions;
pub(crate) mod releases;
pub(crate) mod restart;
pub(crate) mod save;
pub(crate) mod scale;
pub(crate) mod secrets;
pub(crate) mod services;
pub(crate) mod ssh;
mod status;
pub(crate) mod version;
pub(crate) mod volumes;
pub(crate) mod why;

use crate::args::{AppArgs, Command, Fly, Json};
use crate::console::Console;
use crate::env::{self, Environment};
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Loaded};
use crate::interrupt::Interrupt;
use crate::prompt;
use perch_api::client::Client;
use perch_api::wire::Organization;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

/// What every command has at hand.
pub(crate) struct Context<'a> {
    pub(crate) env: &'a Environment,
    pub(crate) console: &'a Console,
    pub(crate) client: Client,
    pub(crate) interrupt: Interrupt,
}

/// Runs the command that was asked for.
pub(crate) async fn dispatch(
    fly: Fly,
    env: &Environment,
    console: &Console,
    interrupt: Interrupt,
) -> Outcome {
    let context = Context { env, console, client: env.client(), interrupt };
    match fly.command {
        Command::Launch(args) => launch::run(&context, *args).await,
        Command::Deploy(args) => deploy::run(&context, *args).await,
        Command::Ips(command) => ips::run(&context, command).await,
        Command::Apps(command) => apps::run(&context, command).await,
        Command::Status(args) => status::run(&context, args).await,
        Command::Machine(command) => machine::run(&context, command).await,
        Command::Scale(command) => scale::run(&context, command).await,
        Command::Secrets(command) => secrets::run(&context, command).await,
        Command::Volumes(command) => volumes::run(&context, command).await,
        Command::Logs(args) => logs::run(&context, args).await,
        Command::Config(command) => config::run(&context, command).await,
        Command::Proxy(args) => proxy::run(&context, args).await,
        Command::Completion(args) => {
            completion::run(&context, &args);
            Ok(())
        }
        Command::Version(args) => {
            version::run(&context, &args);
            Ok(())
        }
        Command::Orgs(command) => orgs::run(&context, command).await,
        Command::Platform(command) => platform::run(&context, command).await,
        Command::Regions(args) => regions::run(&context, args).await,
        Command::Releases(args) => releases::run(&context, args).await,
        Command::Services(command) => services::run(&context, command).await,
        Command::Checks(command) => checks::run(&context, command).await,
        Command::Dig(args) => dig::run(&context, args).await,
        Command::Why(args) => why::run(&context, args).await,
        Command::Ssh(command) => ssh::run(&context, command).await,
        Command::Auth(command) => auth::run(&context, command).await,
    }
}

/// The same environment in another directory, without `.` and links in its name.
fn entered(env: &Environment, dir: &Path) -> Outcome<Environment> {
    let dir = env.dir.join(dir);
    let entered = std::fs::canonicalize(&dir).and_then(|dir| match dir.is_dir() {
        true => Ok(dir),
        false => Err(std::io::ErrorKind::NotADirectory.into()),
    });
    let failed = |error| Failure::from(error).context(format!("could not enter {}", dir.display()));
    Ok(Environment { dir: entered.map_err(failed)?, ..env.clone() })
}

/// Fills a buffer with random bytes for names; nothing here needs secrecy.
fn fill_random(buffer: &mut [u8]) {
    // Before the kernel's source is ready, which no user's command ever meets, names are all zeros
    // and a taken one is refused by the server.
    if rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty()).is_err() {
        buffer.fill(0);
    }
}

impl Context<'_> {
    /// The same with the environment of another directory.
    fn entering<'b>(&'b self, env: &'b Environment) -> Context<'b> {
        let (client, interrupt) = (self.client.clone(), self.interrupt.clone());
        Context { env, console: self.console, client, interrupt }
    }

    /// The app to act on: `--app`, `FLY_APP`, then the configuration file (CL-01).
    pub(crate) fn app_name(&self, args: &AppArgs) -> Outcome<String> {
        self.app_if_named(args)?.ok_or_else(no_app)
    }

    /// As [`Context::app_name`], for commands that can do without. A file that is named has to be there,
    /// whatever else names the app.
    pub(crate) fn app_if_named(&self, args: &AppArgs) -> Outcome<Option<String>> {
        if let (Some(app), None) = (self.given_app(args), &args.config) {
            return Ok(Some(app));
        }
        let loaded = self.config_file(args)?;
        let of_file = loaded.and_then(|loaded| loaded.config.app).filter(|app| !app.is_empty());
        Ok(self.given_app(args).or(of_file))
    }

    /// Whether the output is for programs: `--json`, or `FLY_JSON`.
    pub(crate) fn wants_json(&self, flag: &Json) -> bool {
        flag.json || self.env.is_truthy(env::JSON)
    }

    /// The app that flag or variable name.
    pub(crate) fn given_app(&self, args: &AppArgs) -> Option<String> {
        args.app.clone().or_else(|| self.env.get(env::APP).map(str::to_owned))
    }

    /// The configuration file, if there is one.
    pub(crate) fn config_file(&self, args: &AppArgs) -> Outcome<Option<Loaded>> {
        match flytoml::find(&self.env.dir, args.config.as_deref())? {
            Some(path) => Ok(Some(flytoml::load(&path)?)),
            None => Ok(None),
        }
    }

    /// The organization: flag, variable, the only one, which is said, else the one that is chosen.
    pub(crate) async fn org(&self, given: Option<String>) -> Outcome<Organization> {
        let mut all = self.client.list_organizations().await?;
        all.sort_by(|a, b| (!a.personal, &a.name).cmp(&(!b.personal, &b.name)));
        match (self.given_org(given), all.as_slice()) {
            (Some(slug), _) => {
                let known = slugs(&all);
                let found = all.into_iter().find(|org| org.slug == slug);
                found.ok_or_else(|| {
                    Failure::new(format!("organization {slug} not found"))
                        .hint(format!("There is {known}; name one with -o"))
                })
            }
            (None, [only]) => {
                let name = &only.name;
                self.console.note(format!("automatically selected personal organization: {name}"));
                Ok(only.clone())
            }
            (None, _) if !self.console.is_interactive() => {
                Err(Failure::new("org slug must be specified when not running interactively")
                    .hint(format!("Name one with -o: there is {}", slugs(&all))))
            }
            (None, _) => self.choose_org(all, 0),
        }
    }

    /// The organization that flag or variables name.
    pub(crate) fn given_org(&self, given: Option<String>) -> Option<String> {
        let of_env = || env::ORG.iter().find_map(|name| self.env.get(name)).map(str::to_owned);
        given.or_else(of_env)
    }

    pub(crate) fn choose_org(
        &self,
        mut all: Vec<Organization>,
        default: usize,
    ) -> Outcome<Organization> {
        let name = |org: &Organization| match org.personal && org.slug != "personal" {
            true => format!("{} ({}) [personal]", org.name, org.slug),
            false => format!("{} ({})", org.name, org.slug),
        };
        let options: Vec<_> = all.iter().map(name).collect();
        let chosen = prompt::select(self.console, "Select Organization:", default, &options)?;
        Ok(all.swap_remove(chosen))
    }

    /// Asks a question that only a person at a terminal can answer.
    pub(crate) fn confirm(&self, question: &str) -> Outcome<bool> {
        if !self.console.is_interactive() {
            return Err(Failure::new("yes flag must be specified when not running interactively")
                .hint("Add -y to do it without a question"));
        }
        prompt::confirm(self.console, question)
    }
}

fn slugs(organizations: &[Organization]) -> String {
    organizations.iter().map(|org| org.slug.as_str()).collect::<Vec<_>>().join(", ")
}

/// Runs futures at the same time on this task and answers all their results in order.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<Pin<Box<_>>> = futures.map(Box::pin).collect();
    let mut results: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(move |cx| {
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        match results.iter().all(Option::is_some) {
            true => Poll::Ready(results.iter_mut().filter_map(Option::take).collect()),
            false => Poll::Pending,
        }
    })
    .await
}

fn no_app() -> Failure {
    Failure::new(
        "the config for your app is missing an app name, add an app field to the fly.toml file or \
         specify with the -a flag",
    )
}
