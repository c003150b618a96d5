//! What a Machine's life gives the ledger: one record for each time that it came up, went down or did not.

use perch_api::wire::{LedgerEvent, LedgerPhase};
use perch_core::ledger::Depth;
use perch_core::lifecycle::{Happened, MachineState};
use perch_core::time::Timestamp;
use perch_machine::PagedOut;

use super::Task;
use crate::server::arming::Beginning;
use crate::server::clock;
use crate::server::history::Source;
use crate::server::ledger::entry;
use crate::server::proxy_link::Waking;
use crate::server::verdict::LOST;

/// A start that was asked for and is not over.
pub(super) struct Asked {
    at: Timestamp,
    source: Source,
    cause: String,
    waking: Option<Box<Waking>>,
}

impl Task {
    pub(super) fn enter_happened(&mut self, happened: &Happened) {
        match happened {
            Happened::StartAsked(_) => self.asked = Some(self.asked_now()),
            Happened::RestartAsked | Happened::Launching => {
                if self.asked.is_none() {
                    self.asked = Some(self.asked_now());
                }
            }
            Happened::Launched => self.enter_start(),
            Happened::Resumed => self.enter_resume(),
            Happened::StopAsked(_) => {
                self.asked = None;
                let reason = self.condemnation.take().unwrap_or_else(|| self.cause.clone());
                self.enter(LedgerEvent { reason, ..self.caused("stop") });
            }
            Happened::Lost => {
                self.enter(LedgerEvent { reason: LOST.to_owned(), ..self.caused("stop") });
            }
            Happened::Suspended => self.enter(self.caused("suspend")),
            Happened::SuspendFailed { reason } => self.enter_failure("veto", reason),
            Happened::SuspendCalledOff => self.enter_called_off("its suspend was called off"),
            Happened::StopCalledOff => self.enter_called_off("its stop was called off"),
            Happened::ResumeFailed { reason } | Happened::LaunchFailed { reason } => {
                self.enter_failure("failed", reason);
            }
            Happened::Exited { exit, requested: false, .. } => {
                let reason = match exit.signal {
                    Some(signal) => format!("its program was ended by signal {signal}"),
                    None => format!("its program ended with exit code {}", exit.code),
                };
                self.enter(LedgerEvent { reason, ..self.caused("exit") });
            }
            Happened::Exited { requested: true, .. }
            | Happened::SuspendAsked
            | Happened::Updated { .. }
            | Happened::DestroyAsked
            | Happened::Adopted
            | Happened::Removed => {}
        }
    }

    /// A sleep that the proxy asked for is refused.
    pub(super) fn enter_veto(&self, reason: &str) {
        self.enter_failure("veto", reason);
    }

    /// Nobody can start it for a caller now.
    pub(super) fn enter_no_room(&self, reason: &str) {
        self.enter_failure("failed", reason);
    }

    pub(super) fn enter_page_out(&self, paged: &PagedOut) {
        let because =
            if self.cause.is_empty() { String::new() } else { format!("; {}", self.cause) };
        let reason = format!("{} bytes went to swap{because}", paged.bytes);
        let from = Depth::Suspended.as_str().to_owned();
        self.enter(LedgerEvent { reason, from, ..self.caused("page_out") });
    }

    fn asked_now(&self) -> Asked {
        let (source, cause) = (self.source.clone(), self.cause.clone());
        Asked { at: clock::now(), source, cause, waking: self.waking.clone() }
    }

    fn enter_start(&mut self) {
        let from = match self.beginning {
            Beginning::Armed => Depth::Armed,
            _ => Depth::Stopped,
        };
        let asked = self.asked.take();
        let mut wake = self.of_kind("wake");
        if let Some(Asked { at, source, cause, waking }) = asked {
            let named = waking.as_ref().and_then(|it| it.cause.as_ref());
            wake.trigger = Some(entry::trigger(&source, named));
            wake.reason = cause;
            set_time(&mut wake, "start", clock::now().since(at).as_micros() as u64);
        }
        self.enter(LedgerEvent { from: from.as_str().to_owned(), how: "start".to_owned(), ..wake });
    }

    fn enter_resume(&self) {
        let from = entry::depth_of_frozen(&self.status.borrow().history.newest_first());
        let mut wake = self.caused("wake");
        if let Some(thaw) = self.waking.as_ref().and_then(|it| it.thawed) {
            set_time(&mut wake, "thaw", thaw.micros);
        }
        self.enter(LedgerEvent { from: from.as_str().to_owned(), how: "thaw".to_owned(), ..wake });
    }

    fn enter_called_off(&self, what: &str) {
        let reason = match self.cause.as_str() {
            "" => what.to_owned(),
            cause => format!("{what}: {cause}"),
        };
        self.enter(LedgerEvent { reason, ..self.caused("veto") });
    }

    fn enter_failure(&self, kind: &str, reason: &str) {
        self.enter(LedgerEvent { reason: reason.to_owned(), ..self.caused(kind) });
    }

    /// With who caused what is being done, and why.
    fn caused(&self, kind: &str) -> LedgerEvent {
        let cause = self.waking.as_ref().and_then(|it| it.cause.as_ref());
        let reason = match &self.source {
            Source::Because(cause) => cause.clone(),
            Source::User(_) | Source::Platform | Source::Proxy => self.cause.clone(),
        };
        LedgerEvent {
            trigger: Some(entry::trigger(&self.source, cause)),
            reason,
            ..self.of_kind(kind)
        }
    }

    fn of_kind(&self, kind: &str) -> LedgerEvent {
        let from = match self.life.state() {
            MachineState::Started => Depth::Started.as_str(),
            _ => "",
        };
        LedgerEvent {
            machine: self.id.clone(),
            run: self.life.run(),
            kind: kind.to_owned(),
            from: from.to_owned(),
            ..LedgerEvent::default()
        }
    }

    fn enter(&self, event: LedgerEvent) {
        let app = self.world.keeper.read().machines.get(&self.id).map(|it| it.app.clone());
        // Of one that is removed already nobody can say whose it was.
        let Some(app) = app else { return };
        self.world.ledger.enter(LedgerEvent { app, ..event }, None);
    }
}

fn set_time(event: &mut LedgerEvent, name: &str, micros: u64) {
    event.total_micros = micros;
    event.phases = vec![LedgerPhase { name: name.to_owned(), micros }];
}
