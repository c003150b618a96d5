//! The commands, one file each, and what they share: which app, which file, which server.

mod apps;
mod completion;
mod config;
mod deploy;
mod ips;
mod launch;
mod logs;
mod machine;
mod proxy;
pub(crate) mod scale;
pub(crate) mod secrets;
mod status;

use crate::args::{AppArgs, Command, Fly};
use crate::console::Console;
use crate::env::{self, Environment};
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Loaded};
use crate::interrupt::Interrupt;
use perch_api::client::Client;
use std::path::Path;

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
        Command::Logs(args) => logs::run(&context, args).await,
        Command::Config(command) => config::run(&context, command).await,
        Command::Proxy(args) => proxy::run(&context, args).await,
        Command::Completion(args) => {
            completion::run(&context, &args);
            Ok(())
        }
        Command::Version => {
            console.line(format!("fly v{} (perch)", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
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
        if let Some(app) = self.given_app(args) {
            return Ok(app);
        }
        let loaded = self.config_file(args)?;
        loaded.and_then(|loaded| loaded.config.app).filter(|app| !app.is_empty()).ok_or_else(no_app)
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

    /// The organization: flag, variable, else the server's default one, which is said when it was not
    /// asked for.
    pub(crate) async fn org(&self, given: Option<String>) -> Outcome<String> {
        let of_env = || env::ORG.iter().find_map(|name| self.env.get(name)).map(str::to_owned);
        if let Some(slug) = given.or_else(of_env) {
            return Ok(self.client.get_organization(&slug).await?.slug);
        }
        let slug = self.client.info().await?.default_org;
        let organization = self.client.get_organization(&slug).await?;
        let name = organization.name;
        self.console.note(format!("automatically selected personal organization: {name}"));
        Ok(organization.slug)
    }

    /// Asks a question that only a person at a terminal can answer.
    pub(crate) fn confirm(&self, question: &str) -> Outcome<bool> {
        if !self.console.is_interactive() {
            return Err(Failure::new("yes flag must be specified when not running interactively"));
        }
        Ok(self.console.confirm(question))
    }
}

fn no_app() -> Failure {
    Failure::new(
        "the config for your app is missing an app name, add an app field to the fly.toml file or \
         specify with the -a flag",
    )
}
