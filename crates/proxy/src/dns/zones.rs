//! The server's views as `core` wants them for DNS; made anew only after a change.

use std::net::IpAddr;
use std::rc::Rc;

use perch_core::dns::{Directory as Zones, Member, Presence};
use perch_core::ids::{AppName, BadId, NetworkId};

use crate::control::{AddressKind, AppView, MachineView};
use crate::directory::Directory;

/// The last result, and of which generation of the directory it is.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    last: Option<(u64, Rc<Zones>)>,
}

impl Cache {
    pub(crate) fn get(&mut self, directory: &Directory) -> Rc<Zones> {
        let generation = directory.generation();
        match &self.last {
            Some((of, zones)) if *of == generation => Rc::clone(zones),
            Some(_) | None => {
                let zones = Rc::new(directory.read(make));
                self.last = Some((generation, Rc::clone(&zones)));
                zones
            }
        }
    }
}

fn make(apps: &mut dyn Iterator<Item = &AppView>) -> Zones {
    let mut zones = Zones::default();
    for app in apps {
        if let Ok(name) = app.name.parse::<AppName>() {
            add(&mut zones, &name, app);
        }
    }
    zones
}

fn add(zones: &mut Zones, name: &AppName, app: &AppView) {
    if let Some(network) = NetworkId::new(app.network) {
        // A Machine that we cannot understand is missing for callers too, and was logged there.
        let shown = app.machines.iter().filter(|m| !m.skip_dns).filter_map(|m| member(m).ok());
        zones.networks.entry(network).or_default().apps.insert(name.clone(), shown.collect());
    }
    for address in app.addresses.iter().filter(|a| a.kind == AddressKind::Private) {
        if let (Some(network), IpAddr::V6(ip)) = (NetworkId::new(address.network), address.ip) {
            let zone = zones.networks.entry(network).or_default();
            zone.flycast.entry(name.clone()).or_default().insert(ip);
        }
    }
}

fn member(view: &MachineView) -> Result<Member, BadId> {
    Ok(Member {
        id: view.id.parse()?,
        region: view.region.parse()?,
        group: view.group.parse().ok(),
        private_ip: view.private_ip,
        presence: if view.state == "started" { Presence::Started } else { Presence::Asleep },
        metadata: view.metadata.clone(),
    })
}
