//! Ctrl-C: known everywhere in a command from the first moment on.
//!
//! A command that holds nothing is dropped where it stands. One that has something to give back says so
//! with [`Interrupt::hold`]; it then gets a moment, in which it begins nothing new.

use crate::failure::{Failure, Outcome};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// Longer than one call that is under way and giving back a few leases take, shorter than a person's
/// patience.
const GRACE: Duration = Duration::from_secs(1);

/// Whether the user has pressed Ctrl-C. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    pressed: Rc<watch::Sender<bool>>,
    /// How many things there are to give back.
    held: Rc<Cell<usize>>,
}

/// Something to give back, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held(Rc<Cell<usize>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.update(|held| held - 1);
    }
}

impl Interrupt {
    fn new() -> Self {
        Self { pressed: Rc::new(watch::Sender::new(false)), held: Rc::default() }
    }

    /// From now on Ctrl-C leaves a moment to give something back.
    pub(crate) fn hold(&self) -> Held {
        self.held.update(|held| held + 1);
        Held(Rc::clone(&self.held))
    }

    /// Fails once Ctrl-C was pressed; to be asked before everything that changes something.
    pub(crate) fn check(&self) -> Outcome {
        if *self.pressed.borrow() { Err(Failure::interrupted()) } else { Ok(()) }
    }

    /// Resolves when Ctrl-C is pressed, or at once if it was.
    pub(crate) async fn pressed(&self) {
        let seen = self.pressed.subscribe().wait_for(|pressed| *pressed).await.map(drop);
        // The sender lives as long as this reference.
        debug_assert!(seen.is_ok(), "the sender is gone");
    }

    /// Does something that may be left midway, such as waiting.
    pub(crate) async fn cut<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        tokio::select! {
            biased;
            () = self.pressed() => Err(Failure::interrupted()),
            result = work => result,
        }
    }

    fn is_held(&self) -> bool {
        0 < self.held.get()
    }
}

/// Runs a command until it ends or `signal` comes.
pub(crate) async fn run<F: Future<Output = Outcome>>(
    signal: impl Future<Output = ()>,
    command: impl FnOnce(Interrupt) -> F,
) -> Outcome {
    let interrupt = Interrupt::new();
    let mut command = std::pin::pin!(command(interrupt.clone()));
    tokio::select! {
        // What is ready when the signal comes is not begun any more.
        biased;
        () = signal => {}
        result = &mut command => return result,
    }
    interrupt.pressed.send_replace(true);
    if !interrupt.is_held() {
        return Err(Failure::interrupted());
    }
    // A command that ends by itself in this moment has its own word about how it ended.
    let ended = tokio::time::timeout(GRACE, command).await;
    ended.unwrap_or_else(|_| Err(Failure::interrupted()))
}
