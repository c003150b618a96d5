//! A life in which nothing is under way, in less room: most Machines sleep.

use super::{Lease, Lifecycle, MachineState, Phase, Policy, Restarts};
use crate::mutant::Mutant;

/// All there is to keep of a [`Lifecycle`] whose Machine is down, while nothing comes by itself and nobody waits for an
/// answer.
#[derive(Debug)]
pub struct Resting {
    down: Down,
    lease: Lease,
    mutant: Mutant,
    policy: Policy,
    run: u64,
    config_version: u64,
    running_version: u64,
    start_heard: u64,
    tokens: u64,
    restarts: Restarts,
}

#[derive(Debug, Clone, Copy)]
enum Down {
    Created,
    Stopped,
    Failed,
}

impl Down {
    fn of(phase: Phase) -> Option<Self> {
        match phase {
            Phase::Created => Some(Self::Created),
            Phase::Stopped => Some(Self::Stopped),
            Phase::Failed => Some(Self::Failed),
            Phase::Starting { .. }
            | Phase::Started { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Suspending { .. }
            | Phase::Suspended
            | Phase::Restarting { .. }
            | Phase::Destroying
            | Phase::Destroyed => None,
        }
    }

    fn phase(self) -> Phase {
        match self {
            Self::Created => Phase::Created,
            Self::Stopped => Phase::Stopped,
            Self::Failed => Phase::Failed,
        }
    }
}

impl Lifecycle {
    /// Whether [`Lifecycle::rest`] has an answer.
    pub fn can_rest(&self) -> bool {
        let owes = self.start_attempt.is_some() || self.stop_attempt.is_some();
        Down::of(self.phase).is_some() && !owes && self.effects.is_empty()
    }

    /// What is to be kept while nothing is under way; `None` while something is.
    pub fn rest(&self) -> Option<Resting> {
        let down = Down::of(self.phase).filter(|_| self.can_rest())?;
        Some(Resting {
            down,
            lease: self.lease,
            mutant: self.mutant,
            policy: self.policy,
            run: self.run,
            config_version: self.config_version,
            running_version: self.running_version,
            start_heard: self.start_heard,
            tokens: self.tokens,
            restarts: self.restarts.clone(),
        })
    }
}

impl Resting {
    /// The state on the API.
    pub fn state(&self) -> MachineState {
        match self.down {
            Down::Created => MachineState::Created,
            Down::Stopped => MachineState::Stopped,
            Down::Failed => MachineState::Failed,
        }
    }

    /// The last run; 0: never started.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The life as it was.
    pub fn wake(self) -> Lifecycle {
        let mut life = Lifecycle::new(self.config_version, self.policy);
        life.phase = self.down.phase();
        life.lease = self.lease;
        life.mutant = self.mutant;
        life.run = self.run;
        life.running_version = self.running_version;
        life.start_heard = self.start_heard;
        life.tokens = self.tokens;
        life.restarts = self.restarts;
        life
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Exit, RestartPolicy, SleepBy, StartBy, StopBy};
    use super::*;
    use crate::time::Timestamp;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);
    const POLICY: Policy = Policy {
        kill_signal: 2,
        kill_timeout: Duration::from_secs(5),
        drain_timeout: Duration::from_secs(10),
        restart: RestartPolicy::OnFailure { retries_max: 0 },
        sleep: SleepBy::Stopping,
    };

    fn heard(life: &mut Lifecycle, event: Event) {
        life.handle_event(event, NOW).expect("it makes sense");
    }

    fn drain(life: &mut Lifecycle) {
        while life.poll_effect().is_some() {}
    }

    /// Started by the proxy and crashed.
    fn crashed() -> Lifecycle {
        let mut life = Lifecycle::new(3, POLICY);
        heard(&mut life, Event::Start(StartBy::Proxy { attempt: 7 }));
        heard(&mut life, Event::Launched { run: 1 });
        heard(&mut life, Event::Lease(Lease::Held));
        let exit = Exit { code: 1, signal: None, oom_killed: false };
        heard(&mut life, Event::Exited { run: 1, exit });
        life
    }

    #[test]
    fn who_wakes_from_a_rest_is_as_before() {
        for mut life in [Lifecycle::new(3, POLICY), crashed()] {
            drain(&mut life);
            let woken = life.rest().expect("nothing is under way").wake();
            assert_eq!(format!("{woken:?}"), format!("{life:?}"));
        }
    }

    #[test]
    fn nobody_rests_with_something_under_way() {
        let mut life = Lifecycle::new(3, POLICY);
        heard(&mut life, Event::Start(StartBy::User));
        drain(&mut life);
        assert!(!life.can_rest() && life.rest().is_none(), "it is starting");
        heard(&mut life, Event::Launched { run: 1 });
        drain(&mut life);
        assert!(!life.can_rest() && life.rest().is_none(), "it runs");
        heard(&mut life, Event::Stop(StopBy::User { signal: None, timeout: None }));
        drain(&mut life);
        assert!(!life.can_rest() && life.rest().is_none(), "it is on its way down");
        assert!(!crashed().can_rest(), "nobody was told yet");
    }
}
