//! One health check of one Machine: when it is tried, and what its results mean (MA-70..77, AS-75).
//!
//! ```text
//!                Started: nothing is known              Resumed: the last result stands
//!                        │ at once, then every 200 ms          │ passing: after an interval;
//!                        ▼ until a pass or two intervals       ▼ else as after a start
//!   Rests ───────────► due ──► Effect::Probe ──► Event::Done ──► due after an interval, and so on
//!     ▲                                                    │ passed: passing
//!     └───────────── Event::Rested (any end, any sleep) ◄──┘ failed: critical, but in `grace` as before
//! ```
//!
//! A Machine that does not run is not touched: its last result stays to be shown. Results of a try that was
//! under way when it fell asleep, or of an earlier run, count for nothing. What a status is good for is not
//! known here: the balancer keeps callers away from where a *service's* check does not pass.

use std::time::Duration;

use crate::time::Timestamp;

/// Between two tries after a start, until one passes (AS-75).
pub const FAST_INTERVAL: Duration = Duration::from_millis(200);
/// So many intervals after a start the ordinary rhythm begins also without a pass (AS-75).
const FAST_INTERVALS: u32 = 2;
/// After a start, a program that does not listen yet is waited for at the pace of a caller for so long; later each try
/// connects once, or a port where nobody ever listens would keep the proxy busy.
const EAGER: Duration = Duration::from_secs(1);

/// What a Machine is asked, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckSpec {
    /// Unique within its Machine.
    pub name: String,
    /// Where it connects in the Machine.
    pub port: u16,
    /// What is a pass.
    pub kind: CheckKind,
    /// Its times.
    pub times: Times,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A connection is made.
    Tcp,
    /// The answer to a request has a status of 200 to 299; redirects are not followed (MA-71, CT-08).
    Http {
        /// In upper case.
        method: String,
        /// Begins with a slash.
        path: String,
        /// More headers, one value each.
        headers: Vec<(String, String)>,
    },
}

/// The times of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// From one try to the next.
    pub interval: Duration,
    /// A try that takes longer has failed.
    pub timeout: Duration,
    /// Failures so soon after a start or resume do not count.
    pub grace: Duration,
}

/// What is known of a check, in Fly's words (MA-76).
///
/// Of several checks the worst counts, which is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The last try passed.
    Passing,
    /// There was no pass in this run yet, and no failure that counts.
    Warning,
    /// The last try failed.
    Critical,
}

impl Status {
    /// The word on the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a check hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A new run of the Machine is up.
    Started,
    /// The run that was frozen goes on.
    Resumed,
    /// The Machine stops, is suspended, has crashed, or is about to: it is not to be touched.
    Rested,
    /// A try is over.
    Done {
        /// Of [`Effect::Probe`].
        probe: u64,
        /// What came of it.
        outcome: Outcome,
    },
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It did not, or not in time.
    Failed,
}

/// What a check wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Try, and say [`Event::Done`].
    Probe {
        /// Comes back.
        probe: u64,
        /// A program that does not listen yet may begin to within this time: worth more than one connect.
        patience: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rests,
    Due { at: Timestamp },
    Probing { probe: u64, since: Timestamp },
}

/// See the module's head. After each event and timeout, [`Self::poll_effect`] until `None`.
#[derive(Debug)]
pub struct Check {
    times: Times,
    status: Status,
    phase: Phase,
    /// Failures before this do not count.
    grace_until: Timestamp,
    /// Tries follow each other fast until then; zero after a pass.
    fast_until: Timestamp,
    eager_until: Timestamp,
    last_probe: u64,
    wanted: Option<Effect>,
}

impl Check {
    /// The check of a Machine that does not run, or of which it is not known yet.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            status: Status::Warning,
            phase: Phase::Rests,
            grace_until: Timestamp::ZERO,
            fast_until: Timestamp::ZERO,
            eager_until: Timestamp::ZERO,
            last_probe: 0,
            wanted: None,
        }
    }

    /// What is known; of a Machine that does not run, what was known last.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Takes in one event.
    pub fn handle_event(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Started => {
                self.status = Status::Warning;
                self.begin(now);
            }
            Event::Resumed => self.begin(now),
            Event::Rested => (self.phase, self.wanted) = (Phase::Rests, None),
            Event::Done { probe, outcome } => self.on_done(probe, outcome, now),
        }
        self.handle_timeout(now);
    }

    /// To be called at [`Self::poll_timeout`] or later; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let Phase::Due { at } = self.phase else { return };
        if now < at {
            return;
        }
        self.last_probe += 1;
        self.phase = Phase::Probing { probe: self.last_probe, since: now };
        let is_eager = self.is_fast(now) && now < self.eager_until;
        let patience = if is_eager { FAST_INTERVAL } else { Duration::ZERO };
        let patience = patience.min(self.times.timeout);
        self.wanted = Some(Effect::Probe { probe: self.last_probe, patience });
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.wanted.take()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Due { at } => Some(at),
            Phase::Rests | Phase::Probing { .. } => None,
        }
    }

    fn begin(&mut self, now: Timestamp) {
        self.grace_until = now + self.times.grace;
        self.wanted = None;
        // Who passed when it fell asleep is asked when it would have been anyway: the caller comes first.
        let at = match self.status {
            Status::Passing => {
                self.fast_until = Timestamp::ZERO;
                now + self.times.interval
            }
            Status::Warning | Status::Critical => {
                self.fast_until = now + self.times.interval * FAST_INTERVALS;
                self.eager_until = now + EAGER;
                now
            }
        };
        self.phase = Phase::Due { at };
    }

    fn on_done(&mut self, number: u64, outcome: Outcome, now: Timestamp) {
        let Phase::Probing { probe, since } = self.phase else { return };
        if probe != number {
            return;
        }
        match outcome {
            Outcome::Passed => {
                self.status = Status::Passing;
                self.fast_until = Timestamp::ZERO;
            }
            Outcome::Failed if now < self.grace_until => {}
            Outcome::Failed => self.status = Status::Critical,
        }
        let pause = if self.is_fast(now) { FAST_INTERVAL } else { self.times.interval };
        self.phase = Phase::Due { at: now.max(since + pause) };
    }

    fn is_fast(&self, now: Timestamp) -> bool {
        now < self.fast_until
    }
}

#[cfg(test)]
mod tests;
