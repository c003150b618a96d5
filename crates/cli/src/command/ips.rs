//! `ips list | allocate | allocate-v6 | allocate-v4 | private | release`.
//!
//! `list` and `allocate-v6` print the blueprint's own table, with TABs; so its printed example is what a
//! user sees.

mod advice;

use super::Context;
use crate::args::{AppArgs, Ips};
use crate::failure::{Failure, Outcome};
use crate::render;
use jiff::Timestamp;
use perch_api::wire::{AssignIp, IpAssignment, IpKind, Machine};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

const HEADERS: [&str; 5] = ["VERSION", "IP", "TYPE", "REGION", "CREATED AT"];
/// The shared address belongs to no app, so it has no age (IA-02).
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

pub(super) async fn run(context: &Context<'_>, command: Ips) -> Outcome {
    match command {
        Ips::List { app, json } => list(context, &app, context.wants_json(&json)).await,
        Ips::Allocate { app, region } => advice::run(context, &app, region).await,
        Ips::AllocateV6 { app, private, network, org, region } => {
            let kind = if private { IpKind::PrivateV6 } else { IpKind::V6 };
            let mut input = with_region(kind, region);
            // Both say who may call a private address and mean nothing for a public one (IP-02).
            if private {
                input.network = network.unwrap_or_default();
                input.org_slug = context.given_org(org.org).unwrap_or_default();
            }
            let app = context.app_name(&app)?;
            allocate(context, &app, &input).await
        }
        Ips::AllocateV4 { app, shared, region, yes: _ } => {
            let kind = if shared { IpKind::SharedV4 } else { IpKind::V4 };
            let app = context.app_name(&app)?;
            allocate(context, &app, &with_region(kind, region)).await
        }
        Ips::Private { app, json } => private(context, &app, context.wants_json(&json)).await,
        Ips::Release { addresses, app } => release(context, &app, &addresses).await,
    }
}

fn with_region(kind: IpKind, region: Option<String>) -> AssignIp {
    AssignIp { region: region.unwrap_or_default(), ..AssignIp::of_kind(kind) }
}

async fn list(context: &Context<'_>, args: &AppArgs, as_json: bool) -> Outcome {
    let app = context.app_name(args)?;
    let addresses = context.client.list_ips(&app).await?;
    if as_json {
        let list: Vec<Value> = addresses.iter().map(address_json).collect();
        return Ok(render::json(context.console, &list)?);
    }
    print_table(context, &addresses);
    Ok(())
}

/// Gives an app an address and prints it; asking for one that it has already answers that one, with a
/// notice (FC-08).
async fn allocate(context: &Context<'_>, app: &str, input: &AssignIp) -> Outcome {
    let before = context.client.list_ips(app).await?;
    context.interrupt.check()?;
    let address = context.client.assign_ip(app, input).await?;
    if before.iter().any(|had| had.ip == address.ip) {
        context.console.note(format!("{app} has this address already; nothing was allocated"));
    }
    match input.kind {
        IpKind::SharedV4 => print_shared(context, &address),
        _ => print_table(context, &[address]),
    }
    Ok(())
}

fn print_table(context: &Context<'_>, addresses: &[IpAssignment]) {
    let now = Timestamp::now();
    let rows: Vec<_> = addresses.iter().map(|address| row(address, now)).collect();
    render::tab_table(context.console, &HEADERS, &rows);
}

fn row(address: &IpAssignment, now: Timestamp) -> Vec<String> {
    let (version, kind) = match address.kind {
        IpKind::V4 => ("v4", "public (dedicated)"),
        IpKind::SharedV4 => ("v4", "public (shared)"),
        IpKind::V6 => ("v6", "public (dedicated)"),
        IpKind::PrivateV6 => ("v6", "private"),
    };
    let (region, created) = match address.kind {
        IpKind::SharedV4 => ("", render::date(ZERO_TIME)),
        _ => (address.region.as_str(), render::relative_time(&address.created_at, now)),
    };
    let ip = address.ip.to_string();
    vec![version.to_owned(), ip, kind.to_owned(), region.to_owned(), created]
}

fn print_shared(context: &Context<'_>, address: &IpAssignment) {
    let row = ["v4", &address.ip.to_string(), "shared", "global"].map(str::to_owned).to_vec();
    render::table(context.console, "", &["Version", "IP", "Type", "Region"], &[row]);
}

fn address_json(address: &IpAssignment) -> Value {
    let network = address.network.as_ref().map(
        |network| json!({"Name": network.name, "Organization": {"Slug": network.organization}}),
    );
    let created = match address.kind {
        IpKind::SharedV4 => ZERO_TIME,
        _ => address.created_at.as_str(),
    };
    json!({
        "ID": address.ip.to_string(),
        "Address": address.ip,
        "Type": address.kind,
        "Region": address.region,
        "CreatedAt": created,
        "ServiceName": address.service_name,
        "Network": network,
    })
}

/// Where the app's own Machines are inside its network; those of release commands are no one's target.
async fn private(context: &Context<'_>, args: &AppArgs, as_json: bool) -> Outcome {
    let app = context.app_name(args)?;
    let machines = super::machine::list_managed(context, &app).await?;
    let address = |machine: &Machine| machine.private_ip.to_string();
    if as_json {
        let list: Vec<String> = machines.iter().map(address).collect();
        return Ok(render::json(context.console, &list)?);
    }
    let row =
        |machine: &Machine| vec![machine.id.clone(), machine.region.clone(), address(machine)];
    let rows: Vec<_> = machines.iter().map(row).collect();
    render::table(context.console, "", &["ID", "Region", "IP"], &rows);
    Ok(())
}

/// All addresses are checked before the first is released, so that a slip of the pen releases nothing.
async fn release(context: &Context<'_>, args: &AppArgs, addresses: &[String]) -> Outcome {
    let parse = |text: &String| text.parse::<IpAddr>().map_err(|_| invalid(text));
    let wanted: Vec<IpAddr> = addresses.iter().map(parse).collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = wanted.iter().find(|ip| !seen.insert(**ip)) {
        let message = format!("{twice} is named twice; nothing was released");
        return Err(Failure::new(message).hint("Name each address once"));
    }
    let app = context.app_name(args)?;
    let had = context.client.list_ips(&app).await?;
    if let Some(foreign) = wanted.iter().find(|ip| had.iter().all(|had| had.ip != **ip)) {
        let message = format!("{foreign} is not an address of {app}; nothing was released");
        return Err(Failure::new(message).hint(format!("See them with `fly ips list -a {app}`")));
    }
    for (ip, text) in wanted.into_iter().zip(addresses) {
        context.interrupt.check()?;
        context.client.release_ip(&app, ip).await?;
        context.console.line(format!("Released {text} from {app}"));
    }
    Ok(())
}

fn invalid(text: &str) -> Failure {
    Failure::new(format!("Invalid IP address: '{text}'")).hint("Nothing was released")
}
