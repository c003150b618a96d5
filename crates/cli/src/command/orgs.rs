//! `orgs list | show`.

use super::Context;
use crate::args::Json;
use crate::console::Style;
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::Subcommand;
use perch_api::wire::{Organization, Whoami};
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, Subcommand)]
pub(crate) enum Orgs {
    /// List the organizations that you may use
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Show an organization
    Show {
        /// Its slug
        slug: Option<String>,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(context: &Context<'_>, command: Orgs) -> Outcome {
    match command {
        Orgs::List { json } => list(context, context.wants_json(&json)).await,
        Orgs::Show { slug, json } => show(context, slug, context.wants_json(&json)).await,
    }
}

async fn list(context: &Context<'_>, as_json: bool) -> Outcome {
    let organizations = context.client.list_organizations().await?;
    if as_json {
        let names: BTreeMap<_, _> = organizations.iter().map(|it| (&it.slug, &it.name)).collect();
        return Ok(render::json(context.console, &names)?);
    }
    if !organizations.is_empty() {
        print_row(context, ["Name", "Slug", "Type"]);
        print_row(context, ["----"; 3]);
    }
    organizations.iter().for_each(|it| print_row(context, [&it.name, &it.slug, kind(it)]));
    Ok(())
}

fn print_row(context: &Context<'_>, [name, slug, kind]: [&str; 3]) {
    context.console.line(format!("{name:<20} {slug:<20} {kind:<10}"));
}

fn kind(organization: &Organization) -> &'static str {
    if organization.personal { "PERSONAL" } else { "SHARED" }
}

async fn show(context: &Context<'_>, slug: Option<String>, as_json: bool) -> Outcome {
    let slug = match slug.or_else(|| context.env.get(env::ORG[0]).map(str::to_owned)) {
        Some(slug) => slug,
        None => chosen(context).await?,
    };
    let organization = context.client.get_organization(&slug).await.map_err(|error| {
        let what = format!("failed retrieving organization with slug {slug}");
        Failure::from(error).context(what)
    })?;
    let role = role(&context.client.whoami().await?);
    match as_json {
        true => print_json(context, &organization, role),
        false => {
            print(context, &organization, role);
            Ok(())
        }
    }
}

async fn chosen(context: &Context<'_>) -> Outcome<String> {
    if !context.console.is_interactive() {
        return Err(Failure::new("slug argument must be specified when not running interactively")
            .hint("See them with `fly orgs list`"));
    }
    let mut all = context.client.list_organizations().await?;
    all.sort_by(|a, b| (!a.personal, &a.name).cmp(&(!b.personal, &b.name)));
    Ok(context.choose_org(all, 0)?.slug)
}

/// What the caller may do, in the words of organizations' members.
fn role(caller: &Whoami) -> &'static str {
    match (caller.read_only, &caller.app) {
        (true, _) => "read-only",
        (false, Some(_)) => "member",
        (false, None) => "admin",
    }
}

/// Nobody is a member here: who may call the API is a matter of the socket and of tokens.
fn print(context: &Context<'_>, organization: &Organization, role: &str) {
    let console = context.console;
    console.line(console.paint(Style::Bold, "Organization"));
    let fields = [
        ("Name", organization.name.as_str()),
        ("Slug", &organization.slug),
        ("Type", kind(organization)),
    ];
    for (label, value) in fields {
        console.line(format!("{label:<10}: {value:<20}"));
    }
    console.line(format!("\n{}", console.paint(Style::Bold, "Summary")));
    // The slip of the pen is flyctl's.
    console.line(format!("You have {role} permissions on this organizaton"));
    console.line("There are 0 members associated with this organization\n");
    console.line(console.paint(Style::Bold, "Organization Members"));
    render::boxed_table(console, &["Name", "Email", "Role"], &[]);
}

fn print_json(context: &Context<'_>, organization: &Organization, role: &str) -> Outcome {
    let value = json!({
        "ID": organization.slug,
        "InternalNumericID": organization.internal_numeric_id.to_string(),
        "Name": organization.name,
        "RemoteBuilderImage": "",
        "RemoteBuilderApp": null,
        "Slug": organization.slug,
        "Type": kind(organization),
        "ViewerRole": role,
        "Apps": {"Nodes": null},
        "Members": {"Edges": []},
    });
    Ok(render::json(context.console, &value)?)
}
