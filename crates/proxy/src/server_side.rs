//! The proxy's view of the server: is it there, what is it told, and how many starts it does at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use perch_core::balancer::StartSlots;
use perch_core::fault::{self, Point};
use perch_core::ids::MachineId;
use tokio::sync::mpsc;

use crate::control::{Cause, FromProxy, Note, Thaw, ThawedRun};

/// Messages waiting for the server; one that does not read so many is taken for lost.
pub(crate) const OUTBOX_LEN: usize = 8192;
/// Starts at once until the server says otherwise (DESIGN 4).
const STARTS_MAX_DEFAULT: usize = 8;

/// Notes for the ledger that wait for a server, or for one that reads: half a megabyte. More are counted.
const NOTES_MAX: usize = 1024;

type Start = (MachineId, u64);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct ServerSide {
    outbox: RefCell<Option<mpsc::Sender<FromProxy>>>,
    /// It has told all that it knows.
    ready: Cell<bool>,
    slots: RefCell<StartSlots<Start>>,
    /// Every start that was asked for and not answered; the cause until it is sent.
    causes: RefCell<BTreeMap<Start, Option<Cause>>>,
    /// What was thawed here and no server has answered.
    thaws: RefCell<BTreeMap<MachineId, OwnThaw>>,
    notes: RefCell<Notes>,
    /// Another proxy has taken the listeners over.
    retired: Cell<bool>,
}

/// What the ledger has still to hear.
#[derive(Debug, Default)]
struct Notes {
    /// Whether the server takes them.
    wanted: bool,
    waiting: VecDeque<Note>,
    /// Gone without a word.
    lost: u64,
}

/// A thaw, as the server will hear of it.
#[derive(Debug, Clone)]
pub(crate) struct OwnThaw {
    pub(crate) attempt: u64,
    pub(crate) thaw: Thaw,
    pub(crate) cause: Option<Cause>,
}

impl ServerSide {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            outbox: RefCell::default(),
            ready: Cell::new(false),
            slots: RefCell::new(StartSlots::new(STARTS_MAX_DEFAULT)),
            causes: RefCell::default(),
            thaws: RefCell::default(),
            notes: RefCell::default(),
            retired: Cell::new(false),
        })
    }

    /// A server has connected; what is told goes to the returned receiver.
    pub(crate) fn connected(&self) -> mpsc::Receiver<FromProxy> {
        let (sender, receiver) = mpsc::channel(OUTBOX_LEN);
        *self.outbox.borrow_mut() = Some(sender);
        let thaws = self.thaws.borrow().clone();
        for (machine, thaw) in thaws {
            self.tell_thaw(machine, thaw);
        }
        receiver
    }

    /// What a new server has to know before anything else.
    pub(crate) fn thawed_runs(&self) -> Vec<ThawedRun> {
        let run = |(machine, own): (&MachineId, &OwnThaw)| ThawedRun {
            machine: machine.to_string(),
            run: own.thaw.run,
        };
        self.thaws.borrow().iter().map(run).collect()
    }

    /// A Machine was thawed here; every server hears of it until one has answered.
    pub(crate) fn thawed(&self, machine: MachineId, thaw: OwnThaw) {
        self.thaws.borrow_mut().insert(machine, thaw.clone());
        self.tell_thaw(machine, thaw);
    }

    fn tell_thaw(&self, machine: MachineId, own: OwnThaw) {
        let OwnThaw { attempt, thaw, cause } = own;
        let machine = machine.to_string();
        self.tell(FromProxy::Start { machine, attempt, cause, thawed: Some(thaw) });
    }

    /// The server has told all that it knows: it may be asked now.
    pub(crate) fn set_ready(&self) {
        self.ready.set(true);
        self.send_notes();
    }

    /// Whether the server that is connected takes notes.
    pub(crate) fn set_notes(&self, wanted: bool) {
        self.notes.borrow_mut().wanted = wanted;
    }

    /// Tells the ledger, now or when there is a server again. The oldest go if there are too many.
    pub(crate) fn note(&self, note: Note) {
        {
            let mut notes = self.notes.borrow_mut();
            if notes.waiting.len() == NOTES_MAX {
                let oldest = notes.waiting.pop_front();
                notes.lost += 1 + oldest.map_or(0, |note| note.left_out);
            }
            notes.waiting.push_back(note);
        }
        self.send_notes();
    }

    fn send_notes(&self) {
        while self.ready.get() && self.has_room() {
            let mut notes = self.notes.borrow_mut();
            let next = if notes.wanted { notes.waiting.pop_front() } else { None };
            let Some(mut note) = next else { return };
            note.left_out += std::mem::take(&mut notes.lost);
            drop(notes);
            self.tell(FromProxy::Note(Box::new(note)));
        }
    }

    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }

    /// Whether another proxy decides who sleeps.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// The server is gone: nothing that it was asked will be answered.
    pub(crate) fn lost(&self) {
        self.ready.set(false);
        self.set_notes(false);
        *self.outbox.borrow_mut() = None;
        self.slots.borrow_mut().clear();
        self.causes.borrow_mut().clear();
    }

    pub(crate) fn set_starts_max(&self, starts_max: u32) {
        self.slots.borrow_mut().set_limit(usize::try_from(starts_max).unwrap_or(usize::MAX));
        self.send_starts();
    }

    /// Asks for a start as soon as there is room for one more.
    pub(crate) fn ask_start(&self, machine: MachineId, attempt: u64, cause: Option<Cause>) {
        if !self.ready.get() {
            return;
        }
        let start = (machine, attempt);
        self.causes.borrow_mut().insert(start, cause);
        self.slots.borrow_mut().ask(start);
        self.send_starts();
    }

    /// A start was answered.
    pub(crate) fn start_done(&self, machine: MachineId, attempt: u64) {
        self.causes.borrow_mut().remove(&(machine, attempt));
        self.thaws.borrow_mut().retain(|id, own| *id != machine || own.attempt != attempt);
        self.slots.borrow_mut().finish(&(machine, attempt));
        self.send_starts();
    }

    /// The Machine is gone: nobody will answer for it.
    pub(crate) fn forget(&self, machine: MachineId) {
        self.thaws.borrow_mut().remove(&machine);
        let asked: Vec<Start> = {
            let causes = self.causes.borrow();
            causes.range((machine, 0)..=(machine, u64::MAX)).map(|(start, _)| *start).collect()
        };
        for (machine, attempt) in asked {
            self.start_done(machine, attempt);
        }
    }

    fn send_starts(&self) {
        while let Some((machine, attempt)) = self.next_start() {
            let cause =
                self.causes.borrow_mut().get_mut(&(machine, attempt)).and_then(Option::take);
            fault::pass(Point::ProxyStartAsked);
            self.tell(FromProxy::Start {
                machine: machine.to_string(),
                attempt,
                cause,
                thawed: None,
            });
        }
    }

    fn next_start(&self) -> Option<Start> {
        self.slots.borrow_mut().poll()
    }

    /// Sends a message, or drops it when nobody is there: a new server is told what still matters.
    pub(crate) fn tell(&self, message: FromProxy) {
        let mut outbox = self.outbox.borrow_mut();
        let Some(sender) = outbox.as_ref() else { return };
        if sender.try_send(message).is_err() {
            tracing::error!(
                limit = OUTBOX_LEN,
                "the server does not read; the connection is ended"
            );
            *outbox = None;
        }
    }

    /// A line for the app's own log. Under a flood lines are left out, so that starts get through.
    pub(crate) fn log(&self, level: &str, app: &str, machine: Option<MachineId>, text: String) {
        if self.has_room() {
            self.tell(log(level, app, machine, text, None));
        }
    }

    /// The same as an event of the Machine too; whether it was told.
    pub(crate) fn log_event(
        &self,
        app: &str,
        machine: MachineId,
        kind: &str,
        text: String,
    ) -> bool {
        let told = self.has_room();
        if told {
            self.tell(log("info", app, Some(machine), text, Some(kind.to_owned())));
        }
        told
    }

    fn has_room(&self) -> bool {
        self.outbox.borrow().as_ref().is_some_and(|outbox| OUTBOX_LEN / 2 <= outbox.capacity())
    }
}

fn log(
    level: &str,
    app: &str,
    machine: Option<MachineId>,
    text: String,
    event: Option<String>,
) -> FromProxy {
    let (app, machine) = (app.to_owned(), machine.map(|id| id.to_string()));
    FromProxy::Log { app, machine, level: level.to_owned(), text, event }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_gone_gives_its_start_slot_back() {
        let server = ServerSide::new();
        let mut told = server.connected();
        server.set_ready();
        server.set_starts_max(1);
        let (first, second) = (MachineId::from_low_bits(1), MachineId::from_low_bits(2));
        server.ask_start(first, 7, None);
        server.ask_start(second, 8, None);
        assert!(matches!(told.try_recv(), Ok(FromProxy::Start { attempt: 7, .. })));
        assert!(told.try_recv().is_err(), "there is one slot");
        server.forget(first);
        assert!(matches!(told.try_recv(), Ok(FromProxy::Start { attempt: 8, .. })));
    }

    #[test]
    fn notes_wait_for_a_server_in_a_bounded_place_and_those_that_go_are_counted() {
        use crate::control::NoteKind;
        let server = ServerSide::new();
        for number in 0..NOTES_MAX as u64 + 3 {
            server.note(Note { unix_micros: number, left_out: 1, ..Note::of(NoteKind::Hold) });
        }
        let mut told = server.connected();
        server.set_ready();
        assert!(told.try_recv().is_err(), "an older server takes none");
        server.lost();
        let mut told = server.connected();
        server.set_notes(true);
        server.set_ready();
        for number in 3..NOTES_MAX as u64 + 3 {
            let Ok(FromProxy::Note(note)) = told.try_recv() else { panic!("{number} is missing") };
            let left_out = if number == 3 { 3 * 2 + 1 } else { 1 };
            assert_eq!((note.unix_micros, note.left_out), (number, left_out));
        }
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn nothing_is_asked_of_a_server_that_has_not_told_everything() {
        let server = ServerSide::new();
        let mut told = server.connected();
        server.ask_start(MachineId::from_low_bits(1), 7, None);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_server_that_does_not_read_is_let_go_but_log_lines_alone_cannot_do_that() {
        let server = ServerSide::new();
        let mut told = server.connected();
        for _ in 0..2 * OUTBOX_LEN {
            server.log("warn", "app", None, "PM03".to_owned());
        }
        assert!(server.outbox.borrow().is_some());
        for token in 0..OUTBOX_LEN as u64 {
            let machine = String::new();
            server.tell(FromProxy::Drained { machine, token, in_flight: 0 });
        }
        assert!(server.outbox.borrow().is_none());
        while told.try_recv().is_ok() {}
        assert!(told.is_closed());
    }
}
