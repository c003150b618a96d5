//! Which Machines are to be empty before something is done to them, and which proxies have not said yet that they are.
//!
//! ```text
//!        a connection begins                its connection ends, it lives
//!  Gone ─────────────────────► Connected ────────────────────────────────► Parted
//!   ▲ │                          │   ▲           a connection begins        │ ▲
//!   │ │                          │   └──────────────────────────────────────┤ │
//!   │ │                          │ its process has ended, or it is retired  │ │
//!   └─┼──────────────────────────┴──────────────────────────────────────────┘ │
//!     │                  one lives that was not reached yet                   │
//!     └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Who waits for one that is retired waits on for it under its number.
//!
//! Only an answer or the end of a proxy's process says that nothing is in flight there. The end of its connection says
//! nothing: it serves on whom it has, hears at its next connection what is still waited for ([`Drains::outstanding`]), and
//! is waited for also by who begins to wait meanwhile. Who goes on without an answer, because it took too long, forgets
//! the drain ([`Drains::forget`]): told at a later connection it would close a Machine that is up again.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::mutant::Mutant;

/// Which of the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The one that has the listeners.
    Current,
    /// A retired one, by its number.
    Retired(u64),
}

/// Whether a process is known to have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// It lives, or may.
    Lives,
    /// It is no more.
    Ended,
}

/// What a proxy is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain<M> {
    /// Which Machine.
    pub machine: M,
    /// Its run.
    pub run: u64,
    /// Given back in the answer; no other drain has it.
    pub token: u64,
    /// After this the proxy answers, whoever is inside.
    pub timeout: Duration,
}

/// What is known of the current proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Gone,
    Connected,
    Parted,
}

/// One that is not over.
#[derive(Debug)]
struct Waiting<M, O> {
    drain: Drain<M>,
    owner: O,
    waits_for: BTreeSet<Which>,
}

/// See the module's head. `M` names a Machine; `O` is who waits until it is empty, and comes back when it is.
#[derive(Debug)]
pub struct Drains<M, O> {
    current: Current,
    waiting: BTreeMap<u64, Waiting<M, O>>,
    mutant: Mutant,
}

impl<M, O> Default for Drains<M, O> {
    fn default() -> Self {
        Self::with_mutant(Mutant::None)
    }
}

impl<M, O> Drains<M, O> {
    /// Nobody waits, and no proxy is there; with a planted bug, for the simulation.
    #[doc(hidden)]
    pub fn with_mutant(mutant: Mutant) -> Self {
        Self { current: Current::Gone, waiting: BTreeMap::new(), mutant }
    }

    // ---- the proxies ----------------------------------------------------------------------------

    /// A connection to the current proxy begins. What is asked from now on goes over it, after what is
    /// [`Self::outstanding`].
    pub fn connected(&mut self) {
        self.current = Current::Connected;
    }

    /// There is no connection to the current proxy, any more or yet. Comes back: who waits for nobody now.
    pub fn parted(&mut self, process: Process) -> Vec<O> {
        let process = match self.mutant {
            Mutant::BrokenLinkIsEnd => Process::Ended,
            _ => process,
        };
        match process {
            Process::Lives => {
                self.current = Current::Parted;
                Vec::new()
            }
            Process::Ended => {
                self.current = Current::Gone;
                self.ended(Which::Current)
            }
        }
    }

    /// The current proxy is the retired one of this number from now on, and has no successor yet.
    pub fn retire(&mut self, number: u64) {
        self.current = Current::Gone;
        for waiting in self.waiting.values_mut() {
            if waiting.waits_for.remove(&Which::Current) {
                waiting.waits_for.insert(Which::Retired(number));
            }
        }
    }

    /// A retired proxy has ended. Comes back: who waits for nobody now.
    pub fn retired_ended(&mut self, number: u64) -> Vec<O> {
        self.ended(Which::Retired(number))
    }

    fn ended(&mut self, which: Which) -> Vec<O> {
        for waiting in self.waiting.values_mut() {
            waiting.waits_for.remove(&which);
        }
        let over = self.waiting.extract_if(.., |_, waiting| waiting.waits_for.is_empty());
        over.map(|(_, waiting)| waiting.owner).collect()
    }

    // ---- the drains -----------------------------------------------------------------------------

    /// Somebody waits from now on for the current proxy, if one may live, and for these retired ones, each of which is
    /// asked where it is connected. Comes back: its owner, if there is nobody to wait for.
    pub fn begin(
        &mut self,
        drain: Drain<M>,
        owner: O,
        retired: impl IntoIterator<Item = u64>,
    ) -> Option<O> {
        let mut waits_for: BTreeSet<Which> = retired.into_iter().map(Which::Retired).collect();
        match self.current {
            Current::Parted if self.mutant == Mutant::PartedIsNotAwaited => {}
            Current::Connected | Current::Parted => {
                waits_for.insert(Which::Current);
            }
            Current::Gone => {}
        }
        if waits_for.is_empty() {
            return Some(owner);
        }
        self.waiting.insert(drain.token, Waiting { drain, owner, waits_for });
        None
    }

    /// A proxy has answered. Comes back: the drain's owner, if that was the last one.
    pub fn answered(&mut self, which: Which, token: u64) -> Option<O> {
        let waiting = self.waiting.get_mut(&token)?;
        waiting.waits_for.remove(&which);
        if !waiting.waits_for.is_empty() {
            return None;
        }
        self.waiting.remove(&token).map(|waiting| waiting.owner)
    }

    /// Nobody waits for that run any more: its drain was called off, or its owner goes on without the answer. No
    /// connection that begins later is told of it.
    pub fn forget<N: PartialEq + ?Sized>(&mut self, machine: &N, run: u64)
    where
        M: Borrow<N>,
    {
        let is_it = |drain: &Drain<M>| drain.machine.borrow() == machine && drain.run == run;
        if self.mutant != Mutant::DrainNeverForgotten {
            self.waiting.retain(|_, it| !is_it(&it.drain));
        }
    }

    /// Whether this proxy's answer is still waited for.
    pub fn awaits(&self, which: Which, token: u64) -> bool {
        self.waiting.get(&token).is_some_and(|it| it.waits_for.contains(&which))
    }

    /// What a proxy has to hear before it may let anybody in again, when its connection begins anew.
    pub fn outstanding(&self, which: Which) -> impl Iterator<Item = &Drain<M>> {
        let told = self.mutant != Mutant::DrainNotToldAgain;
        let waiting = self.waiting.values().filter(move |it| told && it.waits_for.contains(&which));
        waiting.map(|it| &it.drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn drain(machine: &'static str, token: u64) -> Drain<&'static str> {
        Drain { machine, run: 3, token, timeout: TIMEOUT }
    }

    fn told(drains: &Drains<&'static str, u64>, which: Which) -> Vec<u64> {
        drains.outstanding(which).map(|drain| drain.token).collect()
    }

    #[test]
    fn a_drain_waits_for_an_answer_of_each_proxy_that_may_live() {
        let mut drains = Drains::default();
        assert_eq!(drains.begin(drain("m", 1), 10, []), Some(10), "nobody is there");
        assert!(drains.parted(Process::Lives).is_empty());
        assert_eq!(drains.begin(drain("n", 3), 30, []), None, "one lives that was not reached yet");
        drains.connected();
        assert_eq!(drains.begin(drain("m", 2), 20, [7]), None);
        assert_eq!(drains.answered(Which::Current, 2), None);
        assert_eq!(drains.answered(Which::Current, 2), None, "it has one voice");
        assert_eq!(drains.answered(Which::Retired(7), 2), Some(20));
        assert_eq!(drains.answered(Which::Retired(7), 2), None, "it is over");
    }

    #[test]
    fn a_broken_connection_ends_no_drain_and_the_next_one_begins_with_it() {
        let mut drains = Drains::default();
        drains.connected();
        assert_eq!(drains.begin(drain("before", 1), 10, []), None);
        assert!(drains.parted(Process::Lives).is_empty());
        assert_eq!(drains.begin(drain("meanwhile", 2), 20, []), None);
        drains.connected();
        assert_eq!(told(&drains, Which::Current), [1, 2]);
        assert_eq!(drains.answered(Which::Current, 1), Some(10));
        assert_eq!(told(&drains, Which::Current), [2]);
    }

    #[test]
    fn the_end_of_a_process_ends_what_waits_for_nobody_else() {
        let mut drains = Drains::default();
        drains.connected();
        assert_eq!(drains.begin(drain("m", 1), 10, []), None);
        assert_eq!(drains.begin(drain("n", 2), 20, [7]), None);
        assert!(drains.parted(Process::Lives).is_empty());
        assert_eq!(drains.parted(Process::Ended), [10]);
        assert_eq!(drains.retired_ended(7), [20]);
        assert_eq!(drains.begin(drain("o", 3), 30, []), Some(30));
    }

    #[test]
    fn who_waits_for_a_proxy_that_is_retired_goes_on_waiting_for_it() {
        let mut drains = Drains::default();
        drains.connected();
        assert_eq!(drains.begin(drain("m", 1), 10, []), None);
        drains.retire(7);
        drains.connected();
        assert!(told(&drains, Which::Current).is_empty());
        assert_eq!(told(&drains, Which::Retired(7)), [1]);
        assert_eq!(drains.answered(Which::Retired(7), 1), Some(10));
    }

    #[test]
    fn a_drain_that_nobody_waits_for_is_told_to_no_connection() {
        let mut drains = Drains::default();
        drains.connected();
        assert_eq!(drains.begin(drain("off", 1), 10, []), None);
        assert_eq!(drains.begin(drain("on", 2), 20, []), None);
        assert!(drains.awaits(Which::Current, 1) && !drains.awaits(Which::Retired(1), 1));
        drains.forget(&"off", 3);
        drains.forget(&"on", 2);
        assert!(!drains.awaits(Which::Current, 1) && drains.awaits(Which::Current, 2));
        assert_eq!(told(&drains, Which::Current), [2]);
        assert_eq!(drains.answered(Which::Current, 1), None, "that comes too late");
    }
}
