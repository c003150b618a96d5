//! What the ledger has told since this server began, as numbers.

use std::collections::BTreeMap;

use perch_api::wire::LedgerEvent;
use perch_core::ledger::{Depth, Histogram, Phase};

/// Apps of which numbers are kept; of more only the sums over all apps.
const APPS_MAX: usize = 16_384;

/// See the module's head.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(super) apps: BTreeMap<String, OfApp>,
    /// How long callers waited for a Machine that slept so deep.
    pub(super) wakes: BTreeMap<Depth, Histogram>,
    pub(super) phases: BTreeMap<(Depth, Phase), Histogram>,
    pub(super) left_out: u64,
    /// Records that were pushed out before the ledger's follower had them.
    pub(crate) overtaken: u64,
    /// Records that a collector of spans did not want.
    pub(crate) refused: u64,
}

/// What happened to one app.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct OfApp {
    /// Wakes for callers, by how deep the Machine slept.
    pub(super) wakes: BTreeMap<Depth, u64>,
    pub(super) waits: u64,
    pub(super) refusals: u64,
    pub(super) failures: u64,
    pub(super) stops: u64,
    pub(super) suspends: u64,
    pub(super) vetoes: u64,
    pub(super) page_outs: u64,
}

impl Tally {
    /// Takes in one record.
    pub(crate) fn note(&mut self, event: &LedgerEvent) {
        self.left_out += event.left_out;
        let depth = Depth::ALL.into_iter().find(|depth| depth.as_str() == event.from);
        if let ("hold", Some(depth)) =
            (event.kind.as_str(), depth.filter(|it| *it != Depth::Started))
        {
            self.wakes.entry(depth).or_default().add(event.total_micros);
            for phase in Phase::ALL {
                // A phase that took no time is not in the record.
                let own = event.phases.iter().find(|own| own.name == phase.as_str());
                let micros = own.map_or(0, |own| own.micros);
                self.phases.entry((depth, phase)).or_default().add(micros);
            }
        }
        if self.apps.len() < APPS_MAX || self.apps.contains_key(&event.app) {
            self.apps.entry(event.app.clone()).or_default().note(event, depth);
        }
    }

    /// Forgets apps that are gone, so that their names take no memory for ever.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.apps.retain(|app, _| is_there(app));
    }
}

impl OfApp {
    fn note(&mut self, event: &LedgerEvent, depth: Option<Depth>) {
        let by = event.trigger.as_ref().map_or("", |trigger| trigger.kind.as_str());
        // By hand, or by the platform for itself, is neither autostart nor autostop.
        let by_caller = event.trigger.as_ref().is_some_and(|it| !it.address.is_empty());
        match (event.kind.as_str(), depth) {
            ("wake", Some(depth)) if by_caller || by == "proxy" => {
                *self.wakes.entry(depth).or_default() += 1;
            }
            ("hold", _) => self.waits += 1,
            ("refusal", _) => self.refusals += 1,
            ("failed", _) => self.failures += 1,
            ("stop", _) if by == "proxy" => self.stops += 1,
            ("suspend", _) if by == "proxy" => self.suspends += 1,
            ("veto", _) => self.vetoes += 1,
            ("page_out", _) => self.page_outs += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perch_api::wire::{LedgerPhase, Trigger};

    fn event(kind: &str, from: &str, by: &str) -> LedgerEvent {
        let address = if by == "host" { "fdaa::1".to_owned() } else { String::new() };
        let trigger = Some(Trigger { kind: by.to_owned(), address, ..Trigger::default() });
        let phases = vec![LedgerPhase { name: "wake".to_owned(), micros: 300 }];
        let (app, kind, from) = ("web".to_owned(), kind.to_owned(), from.to_owned());
        LedgerEvent { app, kind, from, trigger, phases, total_micros: 300, ..Default::default() }
    }

    #[test]
    fn what_was_done_by_hand_is_neither_autostart_nor_autostop() {
        let mut tally = Tally::default();
        for by in ["host", "operator", "platform"] {
            tally.note(&event("wake", "suspended", by));
        }
        for by in ["proxy", "operator"] {
            tally.note(&event("suspend", "", by));
            tally.note(&event("stop", "", by));
        }
        let web = &tally.apps["web"];
        assert_eq!(web.wakes, BTreeMap::from([(Depth::Suspended, 1)]));
        assert_eq!((web.suspends, web.stops), (1, 1));
        tally.retain(|_| false);
        assert!(tally.apps.is_empty());
    }

    #[test]
    fn waits_for_a_wake_are_measured_by_depth_and_phase_and_others_only_counted() {
        let mut tally = Tally::default();
        tally.note(&event("hold", "suspended", "host"));
        tally.note(&event("hold", "started", "host"));
        tally.note(&LedgerEvent { left_out: 7, ..event("hold", "", "host") });
        assert_eq!(tally.apps["web"].waits, 3);
        assert_eq!(tally.left_out, 7);
        assert_eq!(tally.wakes.keys().collect::<Vec<_>>(), [&Depth::Suspended]);
        let sum = |phase| tally.phases[&(Depth::Suspended, phase)].sum_micros();
        assert_eq!((sum(Phase::Wake), sum(Phase::Connect)), (300, 0));
        let phases = Phase::ALL.into_iter().map(sum).sum::<u64>();
        assert_eq!(phases, tally.wakes[&Depth::Suspended].sum_micros());
    }
}
