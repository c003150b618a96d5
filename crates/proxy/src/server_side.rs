//! The proxy's view of the server: is it there, what is it told, and how many starts it does at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use perch_core::balancer::StartSlots;
use perch_core::ids::MachineId;
use tokio::sync::mpsc;

use crate::control::{Cause, FromProxy};

/// Messages waiting for the server; one that does not read so many is taken for lost.
pub(crate) const OUTBOX_LEN: usize = 8192;
/// Starts at once until the server says otherwise (DESIGN 4).
const STARTS_MAX_DEFAULT: usize = 8;

type Start = (MachineId, u64);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct ServerSide {
    outbox: RefCell<Option<mpsc::Sender<FromProxy>>>,
    /// It has told all that it knows.
    ready: Cell<bool>,
    slots: RefCell<StartSlots<Start>>,
    causes: RefCell<BTreeMap<Start, Option<Cause>>>,
}

impl ServerSide {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            outbox: RefCell::default(),
            ready: Cell::new(false),
            slots: RefCell::new(StartSlots::new(STARTS_MAX_DEFAULT)),
            causes: RefCell::default(),
        })
    }

    /// A server has connected; what is told goes to the returned receiver.
    pub(crate) fn connected(&self) -> mpsc::Receiver<FromProxy> {
        let (sender, receiver) = mpsc::channel(OUTBOX_LEN);
        *self.outbox.borrow_mut() = Some(sender);
        receiver
    }

    /// The server has told all that it knows: it may be asked now.
    pub(crate) fn set_ready(&self) {
        self.ready.set(true);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// The server is gone: nothing that it was asked will be answered.
    pub(crate) fn lost(&self) {
        self.ready.set(false);
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
        self.slots.borrow_mut().finish(&(machine, attempt));
        self.send_starts();
    }

    fn send_starts(&self) {
        while let Some((machine, attempt)) = self.next_start() {
            let cause = self.causes.borrow_mut().remove(&(machine, attempt)).flatten();
            self.tell(FromProxy::Start { machine: machine.to_string(), attempt, cause });
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
    pub(crate) fn log(&self, app: &str, machine: Option<MachineId>, text: String) {
        if self.outbox.borrow().as_ref().is_none_or(|outbox| outbox.capacity() < OUTBOX_LEN / 2) {
            return;
        }
        let (app, machine) = (app.to_owned(), machine.map(|id| id.to_string()));
        self.tell(FromProxy::Log { app, machine, level: "warn".to_owned(), text });
    }
}
