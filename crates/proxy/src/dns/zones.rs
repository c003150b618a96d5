//! The server's views as `core` wants them for DNS; made anew only after a change.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use perch_core::dns::Directory as Zones;
use perch_core::ids::{AppName, NetworkId};

use crate::control::AddressKind;
use crate::directory::{Directory, Known};

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

fn make(apps: &mut dyn Iterator<Item = &Known>) -> Zones {
    let mut zones = Zones::default();
    for app in apps {
        if let Ok(name) = app.app.name.parse::<AppName>() {
            add(&mut zones, &name, app);
        }
    }
    zones
}

fn add(zones: &mut Zones, name: &AppName, app: &Known) {
    if let Some(network) = NetworkId::new(app.network) {
        let shown = Arc::clone(&app.shown);
        zones.networks.entry(network).or_default().apps.insert(name.clone(), shown);
    }
    for address in app.addresses.iter().filter(|a| a.kind == AddressKind::Private) {
        if let (Some(network), IpAddr::V6(ip)) = (NetworkId::new(address.network), address.ip) {
            let zone = zones.networks.entry(network).or_default();
            zone.flycast.entry(name.clone()).or_default().insert(ip);
        }
    }
}
