//! What is published at the apps' addresses.
//!
//! What should be at an address follows from the catalog alone, whoever asks and whatever changed. So nobody adds
//! to it or takes from it: after any change the addresses that it touches are *settled*, and each of them then is
//! as the newest catalog says, also when several changes come at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use perch_api::wire::{IpKind, Port};
use perch_net::{NetError, Plane, Ports, Prefix48, Visible};

use super::keeper::{Catalog, Keeper};
use super::records::{IpRecord, Wish};
use super::world::lock;
use super::{images, launching};

/// Where addresses are published: the data plane, or what stands for it in tests.
pub(crate) trait Board {
    /// Lets callers in on these ports, and on no others of the address.
    ///
    /// # Errors
    /// The kernel's.
    fn publish(&self, ip: IpAddr, at: &AtAddress) -> Result<(), NetError>;

    /// Refuses new callers. Idempotent.
    ///
    /// # Errors
    /// The kernel's.
    fn unpublish(&self, ip: IpAddr) -> Result<(), NetError>;
}

impl Board for Plane {
    fn publish(&self, ip: IpAddr, at: &AtAddress) -> Result<(), NetError> {
        Plane::publish(self, ip, Ports { tcp: &at.ports, udp: &at.udp_ports }, at.visible)
    }

    fn unpublish(&self, ip: IpAddr) -> Result<(), NetError> {
        Plane::unpublish(self, ip)
    }
}

/// Ports of an address by transport, merged and sorted, and who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AtAddress {
    ports: Vec<(u16, u16)>,
    udp_ports: Vec<(u16, u16)>,
    visible: Visible,
}

/// What this server has published, so that unchanged addresses are left alone.
#[derive(Debug, Default)]
pub(crate) struct Published {
    at: Mutex<BTreeMap<IpAddr, AtAddress>>,
}

impl Published {
    /// Brings these addresses in line with the catalog. Blocks.
    pub(crate) fn settle(&self, board: &impl Board, keeper: &Keeper, ips: &[IpAddr]) {
        // Held over decisions and calls: else the older of two decisions could reach the kernel last.
        let mut at = lock(&self.at);
        let all = wanted(&keeper.read(), ips);
        for (ip, wanted) in all {
            if let Err(error) = settle_one(board, &mut at, ip, wanted) {
                at.remove(&ip);
                tracing::error!(%ip, error = images::chain(&error), "could not publish");
            }
        }
    }
}

fn settle_one(
    board: &impl Board,
    at: &mut BTreeMap<IpAddr, AtAddress>,
    ip: IpAddr,
    wanted: Option<AtAddress>,
) -> Result<(), NetError> {
    let Some(wanted) = wanted else {
        at.remove(&ip);
        return board.unpublish(ip);
    };
    if at.get(&ip) != Some(&wanted) {
        board.publish(ip, &wanted)?;
        at.insert(ip, wanted);
    }
    Ok(())
}

/// What the catalog wants at each of these addresses: the ports of every app that has it. `None` when no app has it,
/// or only apps that are on their way out. One pass over the apps that may have them, however many addresses there are.
fn wanted(catalog: &Catalog, ips: &[IpAddr]) -> BTreeMap<IpAddr, Option<AtAddress>> {
    let mut all: BTreeMap<IpAddr, Option<AtAddress>> = ips.iter().map(|ip| (*ip, None)).collect();
    for app in catalog.apps_at(ips).into_iter().filter(|app| !app.going) {
        for own in &app.ips {
            let Some(at) = all.get_mut(&own.ip) else { continue };
            let (ports, udp_ports) = (Vec::new(), Vec::new());
            let new = || AtAddress { ports, udp_ports, visible: visible(own) };
            let at = at.get_or_insert_with(new);
            at.ports.extend(ports_of(catalog, &app.name, "tcp"));
            at.udp_ports.extend(ports_of(catalog, &app.name, "udp"));
        }
    }
    for at in all.values_mut().flatten() {
        at.ports = merged(std::mem::take(&mut at.ports));
        at.udp_ports = merged(std::mem::take(&mut at.udp_ports));
    }
    all
}

fn visible(ip: &IpRecord) -> Visible {
    match (ip.kind, &ip.caller) {
        (IpKind::PrivateV6, Some(network)) => {
            Visible::Network(Prefix48::of(launching::prefix(network.id)))
        }
        (IpKind::V4 | IpKind::V6 | IpKind::SharedV4 | IpKind::PrivateV6, _) => Visible::Everyone,
    }
}

/// External ports of this protocol of an app's Machines.
fn ports_of(catalog: &Catalog, app: &str, protocol: &str) -> Vec<(u16, u16)> {
    let machines = catalog.machines_of(app).filter(|machine| machine.life.wish != Wish::Gone);
    let views: Vec<_> = machines.map(|machine| machine.config.view()).collect();
    let services = views.iter().flat_map(|view| &view.services);
    let ports =
        services.filter(|service| service.protocol == protocol).flat_map(|service| &service.ports);
    ports.filter_map(Port::range).collect()
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(start) <= u32::from(last.1) + 1 => last.1 = last.1.max(end),
            Some(_) | None => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
