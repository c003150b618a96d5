//! `ips allocate`: looks at what the app serves and which addresses it has, and offers those that are
//! missing, as flyctl does. Addresses cost nothing here, so no price is told.

use super::super::Context;
use super::{allocate, print_table, with_region};
use crate::args::AppArgs;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use perch_api::wire::{IpAssignment, IpKind, Machine, MachineFilter, Service};

/// What the app's Machines serve.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Served {
    any: bool,
    udp: bool,
    /// Something that the shared address cannot tell apart by the host's name.
    not_http: bool,
}

/// Which addresses the app has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Had {
    v4: bool,
    shared_v4: bool,
    v6: bool,
}

/// What to offer, and why.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    reason: &'static str,
    kinds: Vec<IpKind>,
}

pub(super) async fn run(context: &Context<'_>, args: &AppArgs, region: Option<String>) -> Outcome {
    let app = context.app_name(args)?;
    let machines = context.client.list_machines(&app, &MachineFilter::default()).await;
    let machines = machines
        .map_err(|error| Failure::from(error).context("failed to check deployed services"))?;
    let served = Served::by(&machines);
    let console = context.console;
    if !served.any {
        console.line("No services are currently deployed on this app.");
        console.line(
            "IP addresses are only needed if you have services with external ports configured.",
        );
        if !confirm(context, "Would you like to allocate IP addresses anyway?")? {
            return Ok(());
        }
    }
    let addresses = context.client.list_ips(&app).await?;
    if !addresses.is_empty() {
        console.line("Your app already has the following IP addresses:\n");
        print_table(context, &addresses);
    }
    let had = Had::of(&addresses);
    let Some(offer) = offer(served, had) else {
        console.line("Your app has all necessary IP addresses.");
        more(context, "To allocate more addresses, run:", had);
        return Ok(());
    };
    if !confirm(context, &question(&offer))? {
        more(context, "\nTo customize your IP allocations, run:", had);
        return Ok(());
    }
    console.line("");
    for kind in offer.kinds {
        console.line(format!("Allocating {}...", name(kind)));
        allocate(context, &app, &with_region(kind, region.clone())).await?;
    }
    Ok(())
}

fn confirm(context: &Context<'_>, message: &str) -> Outcome<bool> {
    if !context.console.is_interactive() {
        let message = "use fly ips allocate-v4 or fly ips allocate-v6 in non-interactive mode";
        return Err(Failure::new(message));
    }
    prompt::confirm(context.console, message)
}

fn more(context: &Context<'_>, head: &str, had: Had) {
    let console = context.console;
    console.line(head);
    console.line("   fly ips allocate-v4 (dedicated IPv4)");
    if !had.shared_v4 {
        console.line("   fly ips allocate-v4 --shared (shared IPv4)");
    }
    console.line("   fly ips allocate-v6 (dedicated IPv6)");
    console.line("   fly ips allocate-v6 --private (private IPv6)");
}

fn question(offer: &Offer) -> String {
    let plural = if offer.kinds.len() == 1 { "address" } else { "addresses" };
    let lines: String = offer.kinds.iter().map(|kind| format!("\n    {}", line(*kind))).collect();
    let reason = offer.reason;
    format!("{reason}Would you like to allocate the following {plural}?{lines}")
}

fn line(kind: IpKind) -> &'static str {
    match kind {
        IpKind::V4 => "IPv4: Dedicated",
        IpKind::SharedV4 => "IPv4: Shared",
        IpKind::V6 => "IPv6: Dedicated",
        IpKind::PrivateV6 => "IPv6: Private",
    }
}

fn name(kind: IpKind) -> &'static str {
    match kind {
        IpKind::V4 => "dedicated IPv4",
        IpKind::SharedV4 => "shared IPv4",
        IpKind::V6 | IpKind::PrivateV6 => "IPv6",
    }
}

fn offer(served: Served, had: Had) -> Option<Offer> {
    let dedicated = "Your app has a service that requires a dedicated IPv4 address.\n";
    let of = |reason, kinds: &[IpKind]| Some(Offer { reason, kinds: kinds.to_vec() });
    let only_shared = served.not_http && had.shared_v4 && !had.v4;
    match had {
        _ if only_shared => of(
            "Your app has a service that requires a dedicated IPv4 address, but you currently have a \
             shared IPv4.\n",
            &[IpKind::V4],
        ),
        Had { v6: true, v4, shared_v4 } if v4 || shared_v4 => None,
        Had { v4: false, .. } if served.udp => of(
            "Your app has a UDP service that requires a dedicated IPv4 address.\n",
            &[IpKind::V4],
        ),
        Had { v4: false, shared_v4: false, v6 } => {
            let reason = if served.not_http { dedicated } else { "" };
            let v4 = if served.not_http { IpKind::V4 } else { IpKind::SharedV4 };
            let kinds = [v4, IpKind::V6];
            of(reason, if v6 { &kinds[..1] } else { &kinds })
        }
        _ => of("", &[IpKind::V6]),
    }
}

impl Had {
    fn of(addresses: &[IpAssignment]) -> Self {
        let has = |kind: IpKind| addresses.iter().any(|address| address.kind == kind);
        Self { v4: has(IpKind::V4), shared_v4: has(IpKind::SharedV4), v6: has(IpKind::V6) }
    }
}

impl Served {
    fn by(machines: &[Machine]) -> Self {
        let services = machines.iter().flat_map(|machine| &machine.config.view().services);
        services.fold(Self::default(), |served, service| Self {
            any: true,
            udp: served.udp || service.protocol == "udp",
            not_http: served.not_http || (service.protocol == "tcp" && needs_its_own(service)),
        })
    }
}

/// Whether the service has ports beyond plain HTTP on 80 and HTTPS on 443.
fn needs_its_own(service: &Service) -> bool {
    service.ports.iter().any(|port| {
        let handlers = |wanted: &[&str]| {
            port.handlers.len() == wanted.len()
                && wanted.iter().all(|word| port.handlers.iter().any(|handler| handler == word))
        };
        match port.range() {
            Some((80, 80)) => !handlers(&["http"]),
            Some((443, 443)) => !handlers(&["http", "tls"]),
            _ => true,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(served: Served, had: Had) -> Vec<IpKind> {
        offer(served, had).map(|offer| offer.kinds).unwrap_or_default()
    }

    #[test]
    fn what_is_missing_is_offered_and_nothing_else() {
        let http = Served { any: true, ..Served::default() };
        let raw = Served { not_http: true, ..http };
        let none = Had::default();
        let shared = Had { shared_v4: true, v6: true, v4: false };
        assert_eq!(offered(http, none), [IpKind::SharedV4, IpKind::V6]);
        assert_eq!(offered(raw, none), [IpKind::V4, IpKind::V6]);
        assert_eq!(offered(http, Had { v6: true, ..none }), [IpKind::SharedV4]);
        assert_eq!(offered(http, Had { v4: true, ..none }), [IpKind::V6]);
        assert_eq!(offered(http, shared), []);
        assert_eq!(offered(raw, shared), [IpKind::V4]);
        assert_eq!(offered(Served { udp: true, ..http }, none), [IpKind::V4]);
    }
}
