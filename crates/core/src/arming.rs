//! Which stopped Machines are armed: all of their next start is done already but the start of the program.
//!
//! ```text
//!  Stopped ─► rests for ARM_AFTER ─► Arm ─► armed ─► Awake: its start takes it, or what it is made for changes
//!                                             └────► Disarm: more than `most` are, or memory is short
//! ```
//!
//! Those that stopped last are armed. Nothing here says that a start may use what was armed: whoever starts compares it
//! with what the start needs then.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::MachineId;
use crate::time::Timestamp;

/// How long a Machine has been down before it is armed. One that is wanted again at once would gain nothing: arming takes
/// as long as the start that it spares.
pub const ARM_AFTER: Duration = Duration::from_secs(1);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A Machine has stopped because nobody needs it, and the next who does will start it.
    Stopped {
        /// Which.
        machine: MachineId,
    },
    /// It starts, changes or goes. Whoever says so ends or takes what was armed for it.
    Awake {
        /// Which.
        machine: MachineId,
    },
    /// It could not be armed, or what was armed has died.
    Lost {
        /// Which.
        machine: MachineId,
    },
    /// Memory is short.
    Short,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Make its next run ready.
    Arm {
        /// Which.
        machine: MachineId,
    },
    /// End what was made ready.
    Disarm {
        /// Which.
        machine: MachineId,
    },
}

impl Effect {
    fn machine(self) -> MachineId {
        match self {
            Self::Arm { machine } | Self::Disarm { machine } => machine,
        }
    }
}

/// Decides for all Machines of a host. See the module's head.
#[derive(Debug)]
pub struct Arming {
    most: usize,
    /// When each is to be armed; at most `most`.
    resting: BTreeMap<MachineId, Timestamp>,
    /// When each was due; at most `most`.
    armed: BTreeMap<MachineId, Timestamp>,
    effects: VecDeque<Effect>,
}

impl Arming {
    /// At most so many are armed at once; with 0 none.
    pub fn new(most: usize) -> Self {
        let (resting, armed) = (BTreeMap::new(), BTreeMap::new());
        Self { most, resting, armed, effects: VecDeque::new() }
    }

    /// Takes in one event.
    pub fn handle_event(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Stopped { machine } => self.on_stopped(machine, now),
            Event::Awake { machine } => self.forget(machine),
            Event::Lost { machine } => {
                self.armed.remove(&machine);
            }
            Event::Short => self.on_short(),
        }
    }

    /// To be called at [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some((machine, due)) = oldest(&self.resting).filter(|(_, due)| *due <= now) {
            self.resting.remove(&machine);
            self.armed.insert(machine, due);
            self.effects.push_back(Effect::Arm { machine });
            while self.most < self.armed.len() {
                self.disarm_oldest();
            }
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        oldest(&self.resting).map(|(_, due)| (due, "a stopped Machine is to be armed"))
    }

    fn on_stopped(&mut self, machine: MachineId, now: Timestamp) {
        if self.armed.contains_key(&machine) {
            return;
        }
        self.resting.insert(machine, now + ARM_AFTER);
        while self.most < self.resting.len() {
            // It would be armed first and disarmed for those after it.
            let Some((first, _)) = oldest(&self.resting) else { return };
            self.resting.remove(&first);
        }
    }

    fn forget(&mut self, machine: MachineId) {
        self.resting.remove(&machine);
        self.armed.remove(&machine);
        self.effects.retain(|effect| effect.machine() != machine);
    }

    fn on_short(&mut self) {
        self.resting.clear();
        while !self.armed.is_empty() {
            self.disarm_oldest();
        }
    }

    fn disarm_oldest(&mut self) {
        let Some((machine, _)) = oldest(&self.armed) else { return };
        self.armed.remove(&machine);
        let waiting = self.effects.len();
        self.effects.retain(|effect| *effect != Effect::Arm { machine });
        if self.effects.len() == waiting {
            self.effects.push_back(Effect::Disarm { machine });
        }
    }
}

fn oldest(all: &BTreeMap<MachineId, Timestamp>) -> Option<(MachineId, Timestamp)> {
    all.iter().min_by_key(|(_, at)| **at).map(|(machine, at)| (*machine, *at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> MachineId {
        MachineId::from_low_bits(number)
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// After these Machines stopped, a second apart, and each rested.
    fn after(most: usize, machines: std::ops::Range<u64>) -> (Arming, Vec<Effect>) {
        let mut arming = Arming::new(most);
        let mut effects = Vec::new();
        for number in machines {
            arming.handle_event(Event::Stopped { machine: id(number) }, at(number));
            effects.extend(due(&mut arming, at(number + 1)));
        }
        (arming, effects)
    }

    fn due(arming: &mut Arming, now: Timestamp) -> Vec<Effect> {
        arming.handle_timeout(now);
        std::iter::from_fn(|| arming.poll_effect()).collect()
    }

    fn arm(number: u64) -> Effect {
        Effect::Arm { machine: id(number) }
    }

    fn disarm(number: u64) -> Effect {
        Effect::Disarm { machine: id(number) }
    }

    #[test]
    fn a_machine_is_armed_when_it_has_rested_and_not_before() {
        let mut arming = Arming::new(2);
        arming.handle_event(Event::Stopped { machine: id(1) }, at(5));
        assert_eq!(due(&mut arming, at(5)), []);
        assert_eq!(arming.poll_timeout().map(|(due, _)| due), Some(at(6)));
        assert_eq!(due(&mut arming, at(6)), [arm(1)]);
        assert_eq!((arming.poll_timeout(), due(&mut arming, at(9))), (None, vec![]));
    }

    #[test]
    fn who_wakes_while_it_rests_or_before_it_is_armed_is_left_alone() {
        let mut arming = Arming::new(2);
        for number in [1, 2] {
            arming.handle_event(Event::Stopped { machine: id(number) }, at(0));
        }
        arming.handle_event(Event::Awake { machine: id(1) }, at(0));
        arming.handle_timeout(at(1));
        arming.handle_event(Event::Awake { machine: id(2) }, at(1));
        assert_eq!(due(&mut arming, at(1)), []);
    }

    #[test]
    fn beyond_the_most_the_one_that_sleeps_longest_goes() {
        let (_, effects) = after(2, 1..4);
        assert_eq!(effects, [arm(1), arm(2), arm(3), disarm(1)]);
    }

    #[test]
    fn with_none_allowed_nothing_is_armed_nor_waited_for() {
        let (arming, effects) = after(0, 1..4);
        assert_eq!((effects, arming.poll_timeout()), (vec![], None));
    }

    #[test]
    fn of_many_that_stop_together_no_more_are_armed_than_may_be() {
        let mut arming = Arming::new(2);
        for number in 0..100 {
            arming.handle_event(Event::Stopped { machine: id(number) }, at(0) + micros(number));
        }
        assert_eq!(due(&mut arming, at(9)), [arm(98), arm(99)]);
    }

    fn micros(number: u64) -> Duration {
        Duration::from_micros(number)
    }

    #[test]
    fn what_is_short_of_memory_disarms_all_and_arms_none_that_rests() {
        let (mut arming, _) = after(3, 1..3);
        arming.handle_event(Event::Stopped { machine: id(7) }, at(3));
        arming.handle_event(Event::Short, at(3));
        assert_eq!(due(&mut arming, at(9)), [disarm(1), disarm(2)]);
    }

    #[test]
    fn who_was_armed_in_vain_leaves_its_place() {
        let (mut arming, _) = after(1, 1..2);
        arming.handle_event(Event::Lost { machine: id(1) }, at(2));
        arming.handle_event(Event::Stopped { machine: id(2) }, at(2));
        assert_eq!(due(&mut arming, at(3)), [arm(2)]);
    }
}
