//! The commands, one file each, and what they share: which app, which file, which server.

mod config;

use crate::args::{AppArgs, Command, Fly};
use crate::console::Console;
use crate::env::{self, Environment};
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Loaded};
use perch_api::client::Client;

/// What every command has at hand.
pub(crate) struct Context<'a> {
    pub(crate) env: &'a Environment,
    pub(crate) console: &'a Console,
    pub(crate) client: Client,
}

/// Runs the command that was asked for.
pub(crate) async fn dispatch(fly: Fly, env: &Environment, console: &Console) -> Outcome {
    let context = Context { env, console, client: Client::unix(env.socket()) };
    match fly.command {
        Command::Config(command) => config::run(&context, command).await,
        Command::Version => {
            console.line(format!("fly v{} (perch)", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        _ => Err(Failure::new("this command is not there yet")),
    }
}

impl Context<'_> {
    /// The app to act on: `--app`, `FLY_APP`, then the configuration file (CL-01).
    pub(crate) fn app_name(&self, args: &AppArgs) -> Outcome<String> {
        let given = args.app.clone().or_else(|| self.env.get(env::APP).map(str::to_owned));
        if let Some(app) = given {
            return Ok(app);
        }
        let loaded = self.config_file(args)?;
        loaded.and_then(|loaded| loaded.config.app).filter(|app| !app.is_empty()).ok_or_else(|| {
            Failure::new(
                "the config for your app is missing an app name, add an app field to the fly.toml \
                 file or specify with the -a flag",
            )
        })
    }

    /// The configuration file, if there is one.
    pub(crate) fn config_file(&self, args: &AppArgs) -> Outcome<Option<Loaded>> {
        match flytoml::find(&self.env.dir, args.config.as_deref())? {
            Some(path) => Ok(Some(flytoml::load(&path)?)),
            None => Ok(None),
        }
    }
}
