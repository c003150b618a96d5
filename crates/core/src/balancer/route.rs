//! The warm path: which Machine gets this request, decided and counted in one step (PX-60..63).

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::admission::{AdmissionWord, Band, Change, Limits, Origin, Refusal};
use crate::ids::MachineId;
use crate::mutant::Mutant;

/// One service of one run of a Machine: where to connect, and the word that counts.
#[derive(Debug)]
pub struct Endpoint {
    /// The Machine.
    pub machine: MachineId,
    /// Its run; a claim lives and dies with it.
    pub run: u64,
    /// The index of the service in the Machine's list.
    pub service: usize,
    /// Where its program listens: link address and internal port (FC-21).
    pub target: SocketAddrV4,
    /// Its connections may be parked, because it is suspended when nobody needs it and woken by a byte:
    /// its `auto_stop_after`.
    pub naps: Option<Duration>,
    pub(super) nearby: Nearby,
    pub(super) limits: Limits,
    pub(super) word: Arc<AdmissionWord>,
}

/// Whether a Machine is in this proxy's region (PX-62).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nearby {
    SameRegion,
    OtherRegion,
}

/// All started Machines that publish one port, as of the last change of the pool.
#[derive(Debug)]
pub struct Route {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) when_none: WhenNone,
    /// A sleeping Machine could take load off these: the next caller who is let in at or over
    /// `soft_limit` reports it, once.
    pub(super) relief: AtomicBool,
    pub(super) mutant: Mutant,
    pub(super) stale_pick: AtomicUsize,
}

/// What a caller gets whom no Machine can take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenNone {
    /// Something can be woken or is on its way.
    Hold,
    /// Nothing will come (AS-73).
    Refuse,
}

/// The answer to "who takes this request?".
#[derive(Debug)]
#[must_use = "an admitted claim must be released"]
pub enum Choice {
    /// This Machine; already counted.
    Admitted(Admission),
    /// Nobody now: put the caller into the queue of its port and tell the balancer
    /// ([`super::Event::Demand`]).
    Hold(HoldReason),
    /// Nobody, and waiting is of no use: 503 with PR01 (AS-73).
    Refuse,
}

/// A claim and, if the balancer must hear of it, the edge that it made.
#[derive(Debug)]
#[must_use = "an admitted claim must be released"]
pub struct Admission {
    /// The place in the Machine.
    pub claim: Claim,
    /// To be fed to the balancer as [`super::Event::Edge`] at once.
    pub edge: Option<Edge>,
}

/// Why a caller has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldReason {
    /// No Machine is up: the caller waits for a wake, at most `start_timeout` (PM03 after it).
    Wake,
    /// Every Machine that is up is at `hard_limit` (PX-70).
    Full,
}

/// A notable change of one word. The balancer looks at the word itself; an edge only says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The Machine.
    pub machine: MachineId,
    /// Its run.
    pub run: u64,
    /// The index of the service in the Machine's list.
    pub service: usize,
    /// What happened to the number in flight.
    pub change: Change,
    /// Whether another Machine should wake.
    pub pressure: Pressure,
}

/// Whether a request had to be let in at or over `soft_limit` although a Machine sleeps that could
/// take load off the others (AS-71).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// No.
    None,
    /// Yes.
    OverSoft,
}

/// One place in one Machine, counted until [`Claim::release`].
///
/// It has no `Drop`, because the edge of a release must reach the balancer: a shell whose tasks can
/// be cancelled wraps it in a guard of its own that releases and hands the edge on.
#[must_use = "a claim that is not released keeps its Machine awake for ever"]
pub struct Claim {
    endpoint: Arc<Endpoint>,
    parked: Cell<bool>,
}

impl Claim {
    /// Where to go with the request.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Gives the place back; the edge, if any, goes to the balancer at once.
    #[must_use = "the balancer must hear of an edge"]
    pub fn release(self) -> Option<Edge> {
        let (word, run) = (&self.endpoint.word, self.endpoint.run);
        let change = if self.parked.get() { word.release_parked(run) } else { word.release(run) };
        self.endpoint.edge(change?, Pressure::None)
    }

    /// Whether bytes may go to the Machine without another thought: the run takes requests, and this
    /// one is counted as load. Else [`super::Balancer::goes_on`] is to be asked.
    pub fn is_ready(&self) -> bool {
        let word = &self.endpoint.word;
        !self.parked.get() && !word.observe().closed && word.is_of(self.endpoint.run)
    }

    /// Whether it is a connection that rests.
    pub fn is_parked(&self) -> bool {
        self.parked.get()
    }

    /// From now on a place, but no load: on this connection nothing moves and nothing is owed.
    #[must_use = "the balancer must hear of an edge"]
    pub fn park(&self) -> Option<Edge> {
        if self.parked.get() {
            return None;
        }
        let change = self.endpoint.word.park(self.endpoint.run)?;
        self.parked.set(true);
        self.endpoint.edge(change, Pressure::None)
    }

    /// Load again, if it was parked.
    ///
    /// # Errors
    /// [`Refusal`]: the Machine sleeps or falls asleep ([`super::Event::Recall`]), or its run has ended.
    pub fn unpark(&self, origin: Origin) -> Result<Option<Edge>, Refusal> {
        if !self.parked.get() {
            return if self.is_ready() { Ok(None) } else { Err(Refusal::Closed) };
        }
        let change = self.endpoint.word.unpark(self.endpoint.run, origin)?;
        self.parked.set(false);
        Ok(self.endpoint.edge(change, Pressure::None))
    }

    /// What was no use when it came has turned out to be some ([`crate::heartbeat::Said::UseAgain`]).
    pub fn note_use(&self) {
        if !self.parked.get() {
            self.endpoint.word.note_use(self.endpoint.run);
        }
    }

    /// The same as [`Self::unpark`] after [`super::Effect::Recalled`], when the word's closed bit does not matter.
    ///
    /// # Errors
    /// When the run has ended.
    pub fn go_on(&self, origin: Origin) -> Result<Option<Edge>, Refusal> {
        let (word, run) = (&self.endpoint.word, self.endpoint.run);
        if !self.parked.get() {
            return if word.is_of(run) { Ok(None) } else { Err(Refusal::OtherRun) };
        }
        let change = word.unpark_anyway(run, origin).ok_or(Refusal::OtherRun)?;
        self.parked.set(false);
        Ok(self.endpoint.edge(change, Pressure::None))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({} run {})", self.endpoint.machine, self.endpoint.run)
    }
}

impl Endpoint {
    fn edge(&self, change: Change, pressure: Pressure) -> Option<Edge> {
        let (machine, run, service) = (self.machine, self.run, self.service);
        let heard = pressure == Pressure::OverSoft || change.is_edge(self.limits);
        heard.then_some(Edge { machine, run, service, change, pressure })
    }

    pub(super) fn admission(self: &Arc<Self>, change: Change, pressure: Pressure) -> Admission {
        let edge = self.edge(change, pressure);
        let claim = Claim { endpoint: Arc::clone(self), parked: Cell::new(false) };
        Admission { claim, edge }
    }

    /// How little we want to use it: region and band first, then load. `None`: not at all.
    pub(super) fn cost(&self) -> Option<(Nearby, Band, u32)> {
        let seen = self.word.observe();
        let band = self.limits.band(seen.in_flight);
        let usable = !seen.closed && band != Band::Hard;
        usable.then_some((self.nearby, band, seen.in_flight))
    }
}

impl Route {
    /// Chooses the Machine for one request and counts it there, in one step.
    ///
    /// Below `soft_limit` before at or over it, this region before others, then least loaded; ties
    /// are broken by `random`, any well-mixed number (PX-60..62). Touches nothing but the words;
    /// may be called from any thread.
    pub fn choose(&self, origin: Origin, random: u64) -> Choice {
        if self.mutant == Mutant::ChooseAndCountApart {
            return self.choose_and_count_apart(random);
        }
        // Each refused claim means that another thread changed a word; a bound keeps a caller from
        // spinning for ever, and the slow path then decides under the balancer.
        for _ in 0..=self.endpoints.len() {
            let Some(best) = self.pick(random, |_| true) else { break };
            let endpoint = &self.endpoints[best];
            if let Ok(change) = endpoint.word.claim(endpoint.run, endpoint.limits, origin) {
                let pressure = self.pressure(endpoint.limits, change, origin);
                return Choice::Admitted(endpoint.admission(change, pressure));
            }
        }
        self.when_none()
    }

    /// Lets one waiting caller in without looking at limits: only for planted bugs.
    pub(super) fn force(&self) -> Option<Admission> {
        let open = self.endpoints.iter().find(|e| !e.word.observe().closed)?;
        Some(open.admission(open.word.force(), Pressure::None))
    }

    /// A call of the same pool is not a reason to wake one more (AS-23).
    fn pressure(&self, limits: Limits, change: Change, origin: Origin) -> Pressure {
        let over = limits.band(change.from) != Band::BelowSoft && origin == Origin::Caller;
        // The load is cheap while there is nothing to report; only who reports writes.
        if over && self.relief.load(Ordering::Relaxed) && self.relief.swap(false, Ordering::AcqRel)
        {
            return Pressure::OverSoft;
        }
        Pressure::None
    }

    pub(super) fn pick(&self, random: u64, allowed: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        let mut best = None;
        let mut ties = 0_u64;
        let mut lot = random;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let Some(cost) = endpoint.cost() else { continue };
            if !allowed(endpoint) {
                continue;
            }
            match best {
                Some((_, least)) if least < cost => {}
                Some((_, least)) if least == cost => {
                    ties += 1;
                    lot = mix(lot);
                    if lot.is_multiple_of(ties + 1) {
                        best = Some((index, cost));
                    }
                }
                Some(_) | None => {
                    ties = 0;
                    best = Some((index, cost));
                }
            }
        }
        best.map(|(index, _)| index)
    }

    fn when_none(&self) -> Choice {
        let full = self.endpoints.iter().any(|e| {
            let seen = e.word.observe();
            !seen.closed && e.limits.band(seen.in_flight) == Band::Hard
        });
        if full {
            return Choice::Hold(HoldReason::Full);
        }
        match self.when_none {
            WhenNone::Hold => Choice::Hold(HoldReason::Wake),
            WhenNone::Refuse => Choice::Refuse,
        }
    }

    fn choose_and_count_apart(&self, random: u64) -> Choice {
        let next = self.pick(random, |_| true).unwrap_or(usize::MAX);
        let stale = self.stale_pick.swap(next, Ordering::AcqRel);
        let Some(endpoint) = self.endpoints.get(stale).or_else(|| self.endpoints.get(next)) else {
            return self.when_none();
        };
        Choice::Admitted(endpoint.admission(endpoint.word.force(), Pressure::None))
    }
}

/// One step of SplitMix64, for lots among equals.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
