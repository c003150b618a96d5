//! The last lines of a deploy: what idles, and how the app is reached, chosen by the addresses that it
//! really has (FC-15).

use super::super::Context;
use super::Job;
use super::ports::{Reach, Shown, Speech};
use crate::failure::Outcome;
use crate::flytoml::AutoStop;
use perch_api::wire::{IpAssignment, IpKind};
use std::net::IpAddr;

/// A local port for the example of `fly proxy`; free on most machines.
const PROXY_PORT: u16 = 8080;

pub(super) async fn print(context: &Context<'_>, job: &Job) -> Outcome {
    note_autostop(context, job);
    let addresses = context.client.list_ips(&job.app.name).await?;
    let shown = match Reach::of(&job.config) {
        Reach::At(shown) => shown,
        Reach::NoServices => return by_machines(context, job, "has no services"),
        Reach::NothingServed => return by_machines(context, job, "has no port that is served"),
    };
    let (private, public) = (find(&addresses, IpKind::PrivateV6), find(&addresses, IpKind::V6));
    if private.is_none() && public.is_none() {
        without_address(context, job, &addresses);
    }
    if let Some(ip) = public {
        print_public(context, job, ip, shown);
    }
    if let Some(ip) = private {
        print_private(context, job, ip, shown).await;
    }
    Ok(())
}

/// Without a port at the app's addresses there are still its Machines' own.
fn by_machines(context: &Context<'_>, job: &Job, why: &str) -> Outcome {
    let (app, console) = (&job.app.name, context.console);
    console.line(format!("Your newly deployed app {why}; reach its Machines at"));
    console.line(format!("{app}.internal in the private network"));
    Ok(())
}

fn find(addresses: &[IpAssignment], kind: IpKind) -> Option<IpAddr> {
    addresses.iter().find(|address| address.kind == kind).map(|address| address.ip)
}

/// Names the groups whose Machines stop or are suspended when idle (DE-56).
fn note_autostop(context: &Context<'_>, job: &Job) {
    for (mode, word, verb) in
        [(AutoStop::Stop, "stop", "stopped"), (AutoStop::Suspend, "suspend", "suspended")]
    {
        let idles = |group: &String| {
            let services = job.config.services_of(group);
            services.iter().any(|service| service.auto_stop_machines == Some(mode))
        };
        let groups: Vec<_> = job.config.groups().into_iter().filter(idles).collect();
        if !groups.is_empty() {
            context.console.line(format!(
                "\n\nNOTE: The machines for [{}] have services with 'auto_stop_machines = \"{word}\"' \
                 that will be {verb} when idling\n\n",
                groups.join(", ")
            ));
        }
    }
}

async fn print_private(context: &Context<'_>, job: &Job, ip: IpAddr, shown: Shown) {
    let name = shown.at(&format!("{}.flycast", job.app.name));
    context.console.line(format!(
        "Your newly deployed app is available in the organization's private network under {name}"
    ));
    if is_neighbour(context, ip).await {
        print_curl(context, ip, shown);
    }
    print_proxy(context, job, shown);
}

/// Only HTTP has a client that everybody has.
fn print_curl(context: &Context<'_>, ip: IpAddr, shown: Shown) {
    let address = shown.at(&format!("[{ip}]"));
    context.console.line(match shown.speech {
        Speech::Http => format!("From this host: curl {address}/"),
        Speech::Raw | Speech::Udp => format!("From this host: {address}"),
    });
}

fn print_proxy(context: &Context<'_>, job: &Job, shown: Shown) {
    if shown.speech == Speech::Udp {
        // It carries connections only.
        return;
    }
    let (app, port) = (&job.app.name, shown.number);
    context.console.line(format!("From elsewhere: fly proxy {PROXY_PORT}:{port} -a {app}"));
}

/// Whether the server's host is a member of the address's network.
async fn is_neighbour(context: &Context<'_>, ip: IpAddr) -> bool {
    // The /48 of an IPv6 address is its network (PN-02).
    let network = |ip: IpAddr| match ip {
        IpAddr::V6(ip) => ip.segments().first_chunk::<3>().copied(),
        IpAddr::V4(_) => None,
    };
    let info = context.client.info().await.unwrap_or_default();
    info.host_addresses.into_iter().any(|host| network(host) == network(ip))
}

fn print_public(context: &Context<'_>, job: &Job, ip: IpAddr, shown: Shown) {
    let host = match job.app.hostname.as_str() {
        "" => format!("[{ip}]"),
        host => host.to_owned(),
    };
    let at = shown.at(&host);
    context.console.line(match shown.speech {
        Speech::Http => format!("Visit your newly deployed app at {at}/"),
        Speech::Raw | Speech::Udp => format!("Your newly deployed app is available at {at}"),
    });
    print_curl(context, ip, shown);
    print_proxy(context, job, shown);
}

fn without_address(context: &Context<'_>, job: &Job, addresses: &[IpAssignment]) {
    if let Some(address) = addresses.first() {
        let line = format!("Your newly deployed app has the address {}", address.ip);
        return context.console.line(line);
    }
    let console = context.console;
    console.line("Your app is deployed but does not have a public or private IP address");
    console.line(format!("Give it one with: fly ips allocate-v6 --private -a {}", job.app.name));
}
