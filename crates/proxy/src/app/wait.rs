//! What a caller waited for, told to the server for its ledger, and to the caller in `Perch-Wake`.
//!
//! Only who waited pays for any of this: a place that was there at once carries nothing, and nothing is measured for it.

use std::cell::Cell;

use perch_core::balancer::HoldReason;
use perch_core::ids::MachineId;
use perch_core::ledger::Marks;
use perch_core::time::Timestamp;

use super::{App, NoPlace, Place};
use crate::clock;
use crate::control::{Cause, Note, NoteKind, PhaseTime};

/// How a Machine came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Its frozen run goes on.
    Thaw,
    /// By a new run.
    Start,
    /// It was up: the caller waited for room in it.
    Hold,
}

impl Wake {
    fn as_str(self) -> &'static str {
        match self {
            Self::Thaw => "thaw",
            Self::Start => "start",
            Self::Hold => "hold",
        }
    }
}

/// The last wake of a Machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaking {
    pub(super) by: Wake,
    /// When it was asked for here; `None`: by somebody else.
    pub(super) asked: Option<Timestamp>,
    /// `None`: it is under way.
    pub(super) up: Option<Timestamp>,
}

/// A wait, as the caller saw it.
#[derive(Debug)]
pub(crate) struct Wait {
    cause: Cause,
    by: Wake,
    begun: Timestamp,
    asked: Option<Timestamp>,
    up: Option<Timestamp>,
    placed: Timestamp,
    connected: Cell<Option<Timestamp>>,
}

impl Wait {
    fn marks(&self, ended: Timestamp) -> Marks {
        let (begun, asked, up) = (self.begun, self.asked, self.up);
        let (placed, connected) = (Some(self.placed), self.connected.get());
        Marks { begun, asked, up, placed, connected, ended }
    }
}

impl Place {
    /// The caller has waited since `begun` for this place.
    pub(super) fn set_wait(&self, begun: Timestamp, reason: HoldReason, cause: Cause) {
        let awaking = self.app.wakes.borrow().get(&self.endpoint().machine).copied();
        // What was up before the caller came has not made him wait.
        let awaking = awaking.filter(|it| it.up.is_none_or(|up| begun <= up));
        let awaking = awaking.filter(|_| reason == HoldReason::Wake);
        let by = awaking.map_or(Wake::Hold, |it| it.by);
        let (asked, up) = (awaking.and_then(|it| it.asked), awaking.and_then(|it| it.up));
        let (placed, connected) = (clock::now(), Cell::default());
        let wait = Wait { cause, by, begun, asked, up, placed, connected };
        *self.wait.borrow_mut() = Some(Box::new(wait));
    }

    /// The Machine's program has accepted.
    pub(crate) fn note_connected(&self) {
        if let Some(wait) = self.wait.borrow().as_deref() {
            wait.connected.set(Some(clock::now()));
        }
    }

    /// Whether the caller has waited for it, and nobody was told yet.
    pub(crate) fn has_waited(&self) -> bool {
        self.wait.borrow().is_some()
    }

    /// Value of `Perch-Wake` for who has waited, in the notation of `Server-Timing`: what for, and how many
    /// milliseconds.
    pub(crate) fn wake_header(&self) -> Option<String> {
        let wait = self.wait.borrow();
        let wait = wait.as_deref()?;
        let millis = clock::now().since(wait.begun).as_secs_f64() * 1000.0;
        Some(format!("{};dur={millis:.2}", wait.by.as_str()))
    }

    /// The caller who has waited, if he has, was answered; the first one of a run is logged too.
    pub(crate) fn note_answered(&self) {
        let wait = self.wait.take();
        let Some(wait) = wait else { return };
        let (machine, run) = (self.endpoint().machine, self.endpoint().run);
        let is_first =
            wait.by != Wake::Hold && self.app.woken.borrow_mut().insert(machine, run) != Some(run);
        let marks = wait.marks(clock::now());
        if is_first {
            let request = wait.cause.request.as_deref().unwrap_or("a connection");
            let millis = marks.total().as_secs_f64() * 1000.0;
            let text = format!("woke Machine {machine} in {millis:.2} ms for {request}");
            self.app.server.log("info", &self.app.name, Some(machine), text);
        }
        let note = Note { first: is_first, ..of_wait(&wait, marks) };
        self.app.note(Some((machine, run)), note);
    }

    /// The place goes, and nobody was answered in it.
    pub(super) fn note_unanswered(&self) {
        let wait = self.wait.take();
        let Some(wait) = wait else { return };
        let reason = "it ended before its answer".to_owned();
        let note = Note { reason, ..of_wait(&wait, wait.marks(clock::now())) };
        let endpoint = self.endpoint();
        self.app.note(Some((endpoint.machine, endpoint.run)), note);
    }
}

fn of_wait(wait: &Wait, marks: Marks) -> Note {
    let how = wait.by.as_str().to_owned();
    Note { how, cause: Some(wait.cause.clone()), ..timed(NoteKind::Hold, marks) }
}

fn timed(kind: NoteKind, marks: Marks) -> Note {
    let micros = |it: std::time::Duration| u64::try_from(it.as_micros()).unwrap_or(u64::MAX);
    let phases = marks.phases().into_iter();
    let phases = phases.map(|(phase, length)| PhaseTime {
        name: phase.as_str().to_owned(),
        micros: micros(length),
    });
    Note { phases: phases.collect(), total_micros: micros(marks.total()), ..Note::of(kind) }
}

fn waited(kind: NoteKind, begun: Timestamp) -> Note {
    let (asked, up, placed, connected) = (None, None, None, None);
    let marks = Marks { begun, asked, up, placed, connected, ended: clock::now() };
    Note { phases: Vec::new(), ..timed(kind, marks) }
}

impl App {
    /// A caller has left before there was a place for him.
    pub(super) fn note_left(&self, begun: Timestamp, cause: Cause) {
        self.note_end(begun, cause, "the caller left".to_owned());
    }

    /// A wait is over that brought no place.
    pub(super) fn note_end(&self, begun: Timestamp, cause: Cause, reason: String) {
        let note = Note { reason, cause: Some(cause), ..waited(NoteKind::Hold, begun) };
        self.note(None, note);
    }

    /// A caller who waited since then, if he did, was sent away.
    pub(super) fn note_refusal(&self, begun: Option<Timestamp>, cause: Cause, why: &NoPlace) {
        let kind = NoteKind::Refusal;
        let note = begun.map_or_else(|| Note::of(kind), |begun| waited(kind, begun));
        self.note(None, Note { reason: why.to_string(), cause: Some(cause), ..note });
    }

    /// A caller for whom nobody is woken was sent away at once.
    pub(crate) fn note_refused(&self, cause: Cause) {
        self.note_refusal(None, cause, &NoPlace::Refused);
    }

    /// The same for one who wanted certain Machines, or was not to call.
    pub(crate) fn note_turned_away(&self, cause: Cause, reason: String) {
        self.note(None, Note { reason, cause: Some(cause), ..Note::of(NoteKind::Refusal) });
    }

    /// A sleep that was due does not happen.
    pub(super) fn note_veto(&self, machine: MachineId, run: u64, reason: String) {
        self.note(Some((machine, run)), Note { reason, ..Note::of(NoteKind::Veto) });
    }

    /// Of a flood only the first ones each second are told, and how many were left out.
    fn note(&self, machine: Option<(MachineId, u64)>, note: Note) {
        let mut quota = self.quota.get();
        let left_out = quota.pass(clock::now());
        self.quota.set(quota);
        let Some(left_out) = left_out else { return };
        let (machine, run) = machine.unzip();
        self.server.note(Note {
            app: self.name.to_string(),
            machine: machine.map(|id| id.to_string()),
            run: run.unwrap_or(0),
            unix_micros: clock::unix_micros(),
            left_out,
            ..note
        });
    }
}
