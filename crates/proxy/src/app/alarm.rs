//! Asks an app's balancer again when it wants to be asked: a task, as long as there is such a time.
//!
//! ```text
//!             a timeout                         it is later, or there is none: nothing is done
//!   no task ───────────► a task sleeps ─────────┐
//!      ▲                    │    ▲   it is sooner: it is woken, and sleeps less
//!      │    none is left    ▼    └──────────────┘
//!      └──────────────── it looks, asks the balancer, looks again
//! ```
//!
//! Timeouts move with the first and last request in flight, and mostly to later: that costs no wake-up of
//! the task, which finds out when it looks. Between its last look and its end nothing else runs.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::App;
use crate::clock;

/// What an app has of its task, while there is one.
#[derive(Debug, Default)]
pub(super) struct Slot(RefCell<Option<Rc<Alarm>>>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(alarm) = self.0.take() {
            alarm.changed.notify_one();
        }
    }
}

/// What the task shares with its app; it holds no more, so that the app can go.
#[derive(Debug)]
struct Alarm {
    /// Until when it sleeps.
    due: Cell<Instant>,
    changed: Notify,
}

impl App {
    /// Looks when the balancer wants to be asked again.
    pub(super) fn note_timeout(self: &Rc<Self>) {
        let next = self.balancer.borrow().poll_timeout().map(|(at, _)| at);
        if self.timeout.replace(next) == next {
            return;
        }
        let Some(due) = self.due() else { return };
        let mut slot = self.alarm.0.borrow_mut();
        match &*slot {
            Some(alarm) if due < alarm.due.get() => {
                alarm.due.set(due);
                alarm.changed.notify_one();
            }
            Some(_) => {}
            None => {
                let alarm = Rc::new(Alarm { due: Cell::new(due), changed: Notify::new() });
                *slot = Some(Rc::clone(&alarm));
                tokio::task::spawn_local(run(Rc::downgrade(self), alarm));
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        Some(Instant::now() + self.timeout.get()?.since(clock::now()))
    }

    /// Asks the balancer if it is time; when to look again, if at all.
    fn look(self: &Rc<Self>) -> Option<Instant> {
        if self.timeout.get().is_some_and(|at| at <= clock::now()) {
            self.handle_timeout();
        }
        let due = self.due();
        if due.is_none() {
            self.alarm.0.take();
        }
        due
    }

    /// Whether a task waits for a timeout.
    #[cfg(test)]
    pub(crate) fn has_alarm(&self) -> bool {
        self.alarm.0.borrow().is_some()
    }
}

async fn run(app: Weak<App>, alarm: Rc<Alarm>) {
    loop {
        // Either way it is time to look.
        let _elapsed = timeout_at(alarm.due.get(), alarm.changed.notified()).await.is_err();
        let Some(app) = app.upgrade() else { return };
        let Some(due) = app.look() else { return };
        alarm.due.set(due);
    }
}

#[cfg(test)]
mod tests;
