//! `apps list | create | destroy`; the others have files of their own.

use super::Context;
use crate::args::Apps;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use crate::render;
use jiff::Timestamp;
use perch_api::wire::{App, CreateApp, OrganizationRef, Volume};
use serde_json::{Value, json};

pub(super) async fn run(context: &Context<'_>, command: Apps) -> Outcome {
    match command {
        Apps::List { org, json, quiet } => {
            list(context, org.org.as_deref(), context.wants_json(&json), quiet).await
        }
        Apps::Create { app, name, generate_name, network, org, json, yes, save, .. } => {
            let name = choose_name(context, app, name, generate_name)?;
            let org_slug = context.org(org.org).await?.slug;
            let network = network.unwrap_or_default();
            let input = CreateApp { name, org_slug, network, ..CreateApp::default() };
            let app = create(context, &input).await?;
            if context.wants_json(&json) {
                return Ok(render::json(context.console, &app_json(&app))?);
            }
            context.console.line(format!("New app created: {}", app.name));
            if save { save_file(context, &app.name, yes.yes) } else { Ok(()) }
        }
        Apps::Destroy { apps, yes } => destroy(context, &apps, yes.yes).await,
        Apps::Restart(args) => super::restart::run(context, args).await,
        Apps::Releases(args) => super::releases::run(context, args).await,
    }
}

/// The argument, `--name`, a generated one, or what the user types.
fn choose_name(
    context: &Context<'_>,
    argument: Option<String>,
    flag: Option<String>,
    generate: bool,
) -> Outcome<String> {
    let given = |name: Option<String>| name.filter(|name| !name.is_empty());
    match (given(argument), given(flag)) {
        (Some(argument), Some(flag)) if argument != flag => {
            let message =
                format!("two app names specified {argument} and {flag}, only one may be specified");
            Err(Failure::new(message))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) if generate => Ok(generated_name()),
        (None, None) if !context.console.is_interactive() => Err(no_name()),
        (None, None) => {
            let message = "Choose an app name (leave blank to generate one):";
            let name = prompt::line(context.console, message, "")?;
            Ok(if name.is_empty() { generated_name() } else { name })
        }
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

/// Writes a file that names the app and nothing else; one that is there is asked about.
fn save_file(context: &Context<'_>, app: &str, yes: bool) -> Outcome {
    let path = context.env.dir.join("fly.toml");
    if path.exists() && !yes {
        let question = format!(
            "An existing configuration file has been found\nOverwrite file '{}'",
            path.display()
        );
        if !context.confirm(&question)? {
            return Ok(());
        }
    }
    let text = format!("{}app = '{app}'\n", crate::flytoml::header(app, &render::now_rfc3339()));
    std::fs::write(&path, text).map_err(|error| {
        let doing = format!("the app is made, but {} could not be written", path.display());
        Failure::from(error).context(doing)
    })?;
    context.console.line("Wrote config file fly.toml");
    Ok(())
}

async fn list(context: &Context<'_>, org: Option<&str>, as_json: bool, quiet: bool) -> Outcome {
    if let Some(slug) = org {
        let found = context.client.get_organization(slug).await;
        found.map_err(|error| Failure::from(error).context("error getting organization"))?;
    }
    let apps = context.client.list_apps(org).await?;
    if as_json {
        let list: Vec<Value> = apps.iter().map(app_json).collect();
        return Ok(render::json(context.console, &list)?);
    }
    if apps.is_empty() {
        if !quiet {
            context.console.line("No apps found");
        }
        return Ok(());
    }
    if quiet {
        let rows: Vec<_> = apps.iter().map(|app| vec![app.name.clone()]).collect();
        render::table(context.console, "", &[], &rows);
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

pub(super) fn has_own_network(app: &App) -> bool {
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

/// flyctl's shape: Go field names in their order, all of them, zero values included.
fn app_json(app: &App) -> Value {
    let none = json!({"Nodes": null});
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
        "Organization": organization_json(&app.organization),
        "Secrets": null,
        "CurrentRelease": app.latest_deploy.as_deref().map(release_json),
        "Releases": none,
        "IPAddresses": none,
        "EgressIpAddresses": none,
        "SharedIPAddress": "",
        "CNAMETarget": "",
        "IPAddress": null,
        "Certificates": none,
        "Certificate": certificate_json(),
        "PostgresAppRole": null,
        "Image": null,
        "ImageUpgradeAvailable": false,
        "ImageVersionTrackingEnabled": false,
        "ImageDetails": image_json(),
        "LatestImageDetails": image_json(),
        "PlatformVersion": "machines",
        "Machines": none,
        "CurrentLock": null,
    })
}

fn organization_json(organization: &OrganizationRef) -> Value {
    let none = json!({"Nodes": null, "Edges": null});
    json!({
        "ID": organization.slug,
        "InternalNumericID": organization.internal_numeric_id.to_string(),
        "Name": organization.name,
        "RemoteBuilderImage": "",
        "RemoteBuilderApp": null,
        "Slug": organization.slug,
        "RawSlug": organization.slug,
        "Type": "",
        "PaidPlan": false,
        "Billable": true,
        "Settings": null,
        "AllowedReplaySourceOrgSlugs": null,
        "AllowAllCrossNetworkReplays": false,
        "WireGuardPeer": null,
        "WireGuardPeers": none,
        "DelegatedWireGuardTokens": none,
        "LoggedCertificates": null,
    })
}

/// A release of which only the time is known.
fn release_json(created_at: &str) -> Value {
    json!({
        "ID": "",
        "Version": 0,
        "Stable": false,
        "InProgress": false,
        "Reason": "",
        "Description": "",
        "Status": "complete",
        "DeploymentStrategy": "",
        "Metadata": null,
        "User": {"ID": "", "Name": "", "Email": "", "EnablePaidHobby": false},
        "EvaluationID": "",
        "CreatedAt": created_at,
        "ImageRef": "",
    })
}

fn certificate_json() -> Value {
    json!({
        "ID": "",
        "AcmeDNSConfigured": false,
        "AcmeALPNConfigured": false,
        "Configured": false,
        "CertificateAuthority": "",
        "CreatedAt": "0001-01-01T00:00:00Z",
        "DNSProvider": "",
        "DNSValidationInstructions": "",
        "DNSValidationHostname": "",
        "DNSValidationTarget": "",
        "Hostname": "",
        "Source": "",
        "ClientStatus": "",
        "IsApex": false,
        "IsWildcard": false,
        "ValidationErrors": null,
        "Issued": {"Nodes": null},
    })
}

fn image_json() -> Value {
    json!({"Registry": "", "Repository": "", "Tag": "", "Version": "", "Digest": ""})
}

/// All names are looked up before the first app goes, so that a slip of the pen destroys nothing.
async fn destroy(context: &Context<'_>, apps: &[String], yes: bool) -> Outcome {
    if apps.is_empty() {
        return Err(Failure::new("no app names provided")
            .hint("Name them, as in `fly apps destroy my-app`; `fly apps list` shows them"));
    }
    let mut volumes = Vec::new();
    for app in apps {
        let has = context.client.get_app(app).await?.volume_count;
        volumes.push(match has {
            0 => Vec::new(),
            _ => context.client.list_volumes(app).await?,
        });
    }
    for (app, volumes) in apps.iter().zip(volumes) {
        if !yes {
            context.console.styled_note(Style::Red, "Destroying an app is not reversible.");
            if !context.confirm(&format!("Destroy app {app}?"))? {
                return Ok(());
            }
        }
        let with_volumes = !yes && !volumes.is_empty() && destroys_volumes(context, app, &volumes)?;
        context.interrupt.check()?;
        // In one call: a token may not reach volumes whose app is gone.
        let gone: Vec<_> =
            volumes.iter().filter(|_| with_volumes).map(|volume| volume.id.as_str()).collect();
        context.client.delete_app_with_volumes(app, &gone).await?;
        context.console.line(format!("Destroyed app {app}"));
        for volume in &volumes {
            tell_end(context, app, volume, with_volumes);
        }
    }
    Ok(())
}

fn destroys_volumes(context: &Context<'_>, app: &str, volumes: &[Volume]) -> Outcome<bool> {
    let list: Vec<_> = volumes.iter().map(volume_text).collect();
    context.console.note(format!("App {app} has volumes: {}", list.join(", ")));
    context.confirm("Destroy its volumes with all their data, too?")
}

fn volume_text(volume: &Volume) -> String {
    format!("{} ({}, {}GB)", volume.id, volume.name, volume.size_gb)
}

/// Data go only when somebody says so.
fn tell_end(context: &Context<'_>, app: &str, volume: &Volume, is_gone: bool) {
    let Volume { id, name, .. } = volume;
    if is_gone {
        context.console.line(format!("Destroyed volume ID: {id} name: {name}"));
        return;
    }
    context.console.note(format!(
        "Kept volume {}: an app of the same name finds it again, `fly volumes destroy {id} -a {app}` removes it",
        volume_text(volume)
    ));
}
