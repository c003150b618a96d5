//! `secrets`: variables that only the app's programs see. Values go to the server and never come back.

mod import;
mod list;

use super::{Context, deploy};
use crate::args::{AppArgs, Json};
use crate::failure::{Failure, Outcome};
use clap::{Args, Subcommand};
use perch_api::wire::{App, MachineFilter, SecretValue, UpdateSecrets};
use std::collections::BTreeMap;

/// As much as flyctl reads for one value.
const VALUE_BYTES_MAX: u64 = 64 * 1024;
/// More than all of an app's secrets can have.
const IMPORT_BYTES_MAX: u64 = 1024 * 1024;

/// Secrets are provided to applications at runtime as ENV variables. Names are case sensitive and
/// stored as-is, so ensure names are appropriate for the application and vm environment.
#[derive(Debug, Subcommand)]
pub(crate) enum Secrets {
    /// List application secret names, digests and deployment status
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Set one or more encrypted secrets for an application
    Set {
        /// The secrets; `NAME=-` reads the value from standard input
        #[arg(required = true, value_name = "NAME=VALUE")]
        pairs: Vec<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Unset one or more encrypted secrets for an application
    Unset {
        /// Names of the secrets
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Set secrets as NAME=VALUE pairs from stdin
    Import {
        #[command(flatten)]
        change: Change,
    },
    /// Deploy staged secrets for an application
    Deploy {
        #[command(flatten)]
        rollout: Rollout,
    },
}

/// What the changing commands share.
#[derive(Debug, Args)]
pub(crate) struct Change {
    #[command(flatten)]
    rollout: Rollout,
    /// Set secrets but skip deployment for machine apps
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    stage: bool,
}

/// How what was changed is deployed.
#[derive(Debug, Args)]
pub(crate) struct Rollout {
    #[command(flatten)]
    app: AppArgs,
    /// Do not watch the Machines after their start
    #[arg(short, long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    detach: bool,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dns_checks: Option<bool>,
}

/// Runs the command.
pub(super) async fn run(context: &Context<'_>, command: Secrets) -> Outcome {
    match command {
        Secrets::List { app, json } => list::run(context, &app, json.json).await,
        Secrets::Set { pairs, change } => {
            let app = found(context, &change.rollout.app).await?;
            let values = given(context, &pairs)?;
            update(context, app, set(values), &change).await
        }
        Secrets::Unset { names, change } => {
            let app = found(context, &change.rollout.app).await?;
            let values = names.into_iter().map(|name| (name, None)).collect();
            update(context, app, values, &change).await
        }
        Secrets::Import { change } => {
            let app = found(context, &change.rollout.app).await?;
            let values = imported(context)?;
            update(context, app, set(values), &change).await
        }
        Secrets::Deploy { rollout } => deploy_staged(context, &rollout).await,
    }
}

async fn found(context: &Context<'_>, args: &AppArgs) -> Outcome<App> {
    Ok(context.client.get_app(&context.app_name(args)?).await?)
}

fn set(values: BTreeMap<String, String>) -> BTreeMap<String, Option<SecretValue>> {
    values.into_iter().map(|(name, value)| (name, Some(SecretValue::new(value)))).collect()
}

/// `NAME=VALUE` arguments; a value of `-` is what standard input has, without the space around it.
fn given(context: &Context<'_>, pairs: &[String]) -> Outcome<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::new(format!(
                "could not parse secrets: '{pair}': must be in the format NAME=VALUE"
            ))
        })?;
        values.insert(name.to_owned(), value.to_owned());
    }
    for (name, value) in values.iter_mut().filter(|(_, value)| *value == "-") {
        if !context.console.is_piped() {
            let text = format!("secret `{name}` expects standard input but none provided");
            return Err(Failure::new(text));
        }
        let read = context.console.read_all(VALUE_BYTES_MAX);
        let read = read
            .map_err(|error| Failure::new(format!("error reading stdin for '{name}': {error}")))?;
        *value = read.trim().to_owned();
    }
    Ok(values)
}

fn imported(context: &Context<'_>) -> Outcome<BTreeMap<String, String>> {
    let failed =
        |error: &dyn std::fmt::Display| format!("Failed to parse secrets from stdin: {error}");
    let text = context.console.read_all(IMPORT_BYTES_MAX);
    let text = text.map_err(|error| Failure::new(failed(&error)))?;
    let values = import::parse(&text).map_err(|error| Failure::new(failed(&error)))?;
    if values.is_empty() {
        return Err(Failure::new("requires at least one SECRET=VALUE pair"));
    }
    Ok(values)
}

async fn update(
    context: &Context<'_>,
    app: App,
    values: BTreeMap<String, Option<SecretValue>>,
    change: &Change,
) -> Outcome {
    context.interrupt.check()?;
    let updated = context.client.update_secrets(&app.name, &UpdateSecrets { values }).await;
    updated.map_err(|error| Failure::from(error).context("update secrets"))?;
    if change.stage {
        context.console.line(
            "Secrets have been staged, but not set on VMs. Deploy or update machines in this app \
             for the secrets to take effect.",
        );
        return Ok(());
    }
    let machines = context.client.list_machines(&app.name, &MachineFilter::default()).await?;
    if !is_deployed(&app) && machines.is_empty() {
        context.console.line("Secrets are staged for the first deployment");
        return Ok(());
    }
    deploy::restart(context, app, !change.rollout.detach).await
}

fn is_deployed(app: &App) -> bool {
    matches!(app.status.as_str(), "deployed" | "suspended")
}

async fn deploy_staged(context: &Context<'_>, rollout: &Rollout) -> Outcome {
    let app = found(context, &rollout.app).await?;
    let machines = context.client.list_machines(&app.name, &MachineFilter::default()).await?;
    if !is_deployed(&app) || machines.is_empty() {
        return Err(Failure::new("no machines available to deploy").hint(
            "'fly secrets deploy' will only work if the app has been deployed and there are \
             machines available\n\nTry 'fly deploy' first",
        ));
    }
    deploy::restart(context, app, !rollout.detach).await
}
