//! `apps list | create | destroy`.

use super::Context;
use crate::args::Apps;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::render;
use jiff::Timestamp;
use perch_api::wire::{App, CreateApp};
use serde_json::{Value, json};

pub(super) async fn run(context: &Context<'_>, command: Apps) -> Outcome {
    match command {
        Apps::List { org, json, quiet } => {
            list(context, org.org.as_deref(), json.json, quiet).await
        }
        Apps::Create { app, name, generate_name, network, org, json, save, .. } => {
            let name = match (name.or(app), generate_name) {
                (Some(name), _) => name,
                (None, true) => generated_name(),
                (None, false) => return Err(no_name()),
            };
            let org_slug = context.org(org.org).await?;
            let network = network.unwrap_or_default();
            let input = CreateApp { name, org_slug, network, ..CreateApp::default() };
            let app = create(context, &input).await?;
            if save {
                save_file(context, &app.name)?;
            }
            match json.json {
                true => render::json(context.console, &app_json(&app))?,
                false => context.console.line(format!("New app created: {}", app.name)),
            }
            Ok(())
        }
        Apps::Destroy { apps, yes } => destroy(context, &apps, yes.yes).await,
    }
}

fn no_name() -> Failure {
    Failure::new("name argument or flag must be specified when not running interactively")
        .hint("For example `fly apps create my-app`, or `fly apps create --generate-name`")
}

/// Creates an app; a name that is taken brings its hint along.
pub(super) async fn create(context: &Context<'_>, input: &CreateApp) -> Outcome<App> {
    let created = context.client.create_app(input).await;
    created.map_err(|error| {
        let taken = error.word() == Some("name_taken");
        let failure = Failure::from(error);
        match taken {
            true => failure.hint(
                "App names are unique on an installation. Choose another one, or let one be chosen \
                 with --generate-name",
            ),
            false => failure,
        }
    })
}

/// Two words and a number, as flyctl's are: easy to say, rarely taken.
pub(super) fn generated_name() -> String {
    const FIRST: [&str; 12] = [
        "bold", "calm", "clear", "early", "fair", "green", "keen", "late", "mild", "quiet",
        "swift", "warm",
    ];
    const SECOND: [&str; 12] = [
        "brook", "cliff", "dune", "field", "grove", "hill", "lake", "moss", "pine", "reed",
        "shore", "wren",
    ];
    let mut random = [0; 4];
    super::fill_random(&mut random);
    let pick = |byte: u8| usize::from(byte) % FIRST.len();
    let number = u16::from_le_bytes([random[2], random[3]]) % 10_000;
    format!("{}-{}-{number}", FIRST[pick(random[0])], SECOND[pick(random[1])])
}

fn save_file(context: &Context<'_>, app: &str) -> Outcome {
    let path = context.env.dir.join("fly.toml");
    let text = format!("{}app = '{app}'\n", crate::flytoml::header(app, &render::now_rfc3339()));
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| {
            Failure::from(error).context(format!("could not write {}", path.display()))
        })?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    context.console.line("Wrote config file fly.toml");
    Ok(())
}

async fn list(context: &Context<'_>, org: Option<&str>, as_json: bool, quiet: bool) -> Outcome {
    let apps = context.client.list_apps(org).await?;
    if as_json {
        let list: Vec<Value> = apps.iter().map(app_json).collect();
        return Ok(render::json(context.console, &list)?);
    }
    if quiet {
        apps.iter().for_each(|app| context.console.line(&app.name));
        return Ok(());
    }
    if apps.is_empty() {
        context.console.line("No apps found");
        return Ok(());
    }
    let networks = apps.iter().any(has_own_network);
    let mut headers = vec!["Name", "Owner", "Status", "Latest Deploy"];
    if networks {
        headers.insert(3, "Network");
    }
    let now = Timestamp::now();
    let rows: Vec<_> = apps.iter().map(|app| row(app, networks, now)).collect();
    render::table(context.console, "", &headers, &rows);
    Ok(())
}

fn has_own_network(app: &App) -> bool {
    !matches!(app.network.as_str(), "" | "default")
}

fn row(app: &App, networks: bool, now: Timestamp) -> Vec<String> {
    let deployed = app.latest_deploy.as_deref().map(|time| render::relative_time(time, now));
    let owner = app.organization.slug.clone();
    let mut row = vec![app.name.clone(), owner, app.status.clone(), deployed.unwrap_or_default()];
    if networks {
        row.insert(3, if has_own_network(app) { app.network.clone() } else { String::new() });
    }
    row
}

/// flyctl's shape: Go field names, zero values included.
fn app_json(app: &App) -> Value {
    let organization = &app.organization;
    let release = app.latest_deploy.as_ref().map(|created| json!({"CreatedAt": created}));
    json!({
        "ID": app.id,
        "InternalNumericID": app.internal_numeric_id,
        "Name": app.name,
        "State": "",
        "Status": app.status,
        "Deployed": app.status == "deployed",
        "Hostname": app.hostname,
        "AppURL": "",
        "Version": 0,
        "NetworkID": 0,
        "Network": if has_own_network(app) { app.network.as_str() } else { "" },
        "Release": null,
        "Organization": {
            "ID": organization.slug,
            "InternalNumericID": organization.internal_numeric_id.to_string(),
            "Name": organization.name,
            "Slug": organization.slug,
            "RawSlug": organization.slug,
            "Type": "",
            "PaidPlan": false,
            "Billable": true,
        },
        "Secrets": null,
        "CurrentRelease": release,
        "Releases": {"Nodes": null},
        "IPAddresses": {"Nodes": null},
        "PlatformVersion": "machines",
        "Machines": {"Nodes": null},
    })
}

async fn destroy(context: &Context<'_>, apps: &[String], yes: bool) -> Outcome {
    for app in apps {
        context.client.get_app(app).await?;
    }
    for app in apps {
        if !yes {
            context.console.styled_note(Style::Red, "Destroying an app is not reversible.");
            if !context.confirm(&format!("Destroy app {app}?"))? {
                continue;
            }
        }
        context.client.delete_app(app).await?;
        context.console.line(format!("Destroyed app {app}"));
    }
    Ok(())
}
