//! The last lines of a deploy: what idles, and how the app is reached, chosen by the addresses that it
//! really has (FC-15).

use super::super::Context;
use super::Job;
use crate::failure::Outcome;
use crate::flytoml::AutoStop;
use perch_api::wire::{IpAssignment, IpKind};
use std::net::IpAddr;

/// A local port for the example of `fly proxy`; free on most machines.
const PROXY_PORT: u16 = 8080;

pub(super) async fn print(context: &Context<'_>, job: &Job) -> Outcome {
    note_autostop(context, job);
    let addresses = context.client.list_ips(&job.app.name).await?;
    let port = external_port(job);
    match (find(&addresses, IpKind::PrivateV6), find(&addresses, IpKind::V6), port) {
        (_, _, None) => {
            context.console.line("Your newly deployed app has no services; reach its Machines at");
            context.console.line(format!("{}.internal in the private network", job.app.name));
        }
        (None, None, Some(_)) => without_address(context, job, &addresses),
        (private, public, Some(port)) => {
            if let Some(ip) = public {
                print_public(context, job, ip, port).await;
            }
            if let Some(ip) = private {
                print_private(context, job, ip, port).await;
            }
        }
    }
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

async fn print_private(context: &Context<'_>, job: &Job, ip: IpAddr, port: u16) {
    let (app, console) = (&job.app.name, context.console);
    let suffix = suffix(port);
    console.line(format!(
        "Your newly deployed app is available in the organization's private network under \
         http://{app}.flycast{suffix}"
    ));
    if is_neighbour(context, ip).await {
        console.line(format!("From this host: curl http://[{ip}]{suffix}/"));
    }
    console.line(format!("From elsewhere: fly proxy {PROXY_PORT}:{port} -a {app}"));
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

async fn print_public(context: &Context<'_>, job: &Job, ip: IpAddr, port: u16) {
    let (app, console) = (&job.app.name, context.console);
    let suffix = suffix(port);
    let host = match job.app.hostname.as_str() {
        "" => format!("[{ip}]"),
        host => host.to_owned(),
    };
    console.line(format!("Visit your newly deployed app at http://{host}{suffix}/"));
    console.line(format!("From this host: curl http://[{ip}]{suffix}/"));
    console.line(format!("From elsewhere: fly proxy {PROXY_PORT}:{port} -a {app}"));
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

fn suffix(port: u16) -> String {
    if port == 80 { String::new() } else { format!(":{port}") }
}

/// Port 80 if some service has it, else the lowest TCP port.
fn external_port(job: &Job) -> Option<u16> {
    let groups = job.config.groups();
    let services = groups.iter().flat_map(|group| job.config.services_of(group));
    let tcp = services.filter(|service| service.protocol.as_deref() != Some("udp"));
    let ports = tcp.flat_map(|service| service.ports);
    let numbers = ports.filter_map(|port| port.port.or(port.start_port));
    numbers.filter_map(|number| u16::try_from(number).ok()).min_by_key(|port| (*port != 80, *port))
}
