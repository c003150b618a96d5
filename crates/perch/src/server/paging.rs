//! What becomes of the memory of Machines that sleep.
//!
//! ```text
//!  fell_asleep ─► yield: the kernel's first choice ─► page_out_after ─► page-out, one Machine after the other
//!       woke ───► the page-out ends at the next chunk, the Machine is as before ─► what it had in swap is read back
//! ```
//!
//! One thread does all of it: nothing here is urgent but taking back, which is done between two chunks of whatever else
//! is going on. Reading back comes next, between two chunks of a page-out. A thaw that the server hears of late ends a
//! page-out all the same: it looks at the Machine itself.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use perch_api::wire;
use perch_core::memory::{self, Admission, Facts, Need, Pressure, Relief, Remainder, Stalls};
use perch_core::time::Timestamp;
use perch_machine::memory::End;
use perch_machine::{Machine, Memory, PagedOut, Swap};

use super::capacity::{self, Capacity};
use super::clock;
use super::images::chain;
use super::machine::Command;
use super::seat::Post;
use super::world::lock;

/// Reading back begins so long after a thaw: a request that touches little is then answered, and nothing competes with
/// it for the disk.
const PREFETCH_DELAY: Duration = Duration::from_millis(50);
/// Most that is read back for one Machine; what it wants beyond comes when it touches it.
const PREFETCH_BYTES_MAX: u64 = 1 << 30;
/// Machines that wait for being read back; beyond, memory comes when it is touched.
const PREFETCHES_MAX: usize = 32;
/// How often it is looked at the host's memory, only while somebody sleeps. A look costs 50 µs.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So long a sleeper that was told to stop may take before somebody else is told, too.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// The kernel tells how long programs waited in the last 10 s: what was done about it shows only after that.
const PRESSURE_PAUSE: Duration = Duration::from_secs(10);
/// So long it is known what a Machine has taken of what it was promised: in a burst of starts each of them asks for all.
const TAKEN_KNOWN: Duration = Duration::from_millis(100);
/// So long where somebody would have to give way, or to wait, for what has been taken meanwhile.
const TAKEN_KNOWN_CLOSELY: Duration = Duration::from_millis(10);
/// A Machine that could not be paged out, because there was no swap, is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The way to the thread.
#[derive(Debug)]
pub(crate) struct Pager {
    shared: Arc<Shared>,
    /// `None`: never by itself.
    page_out_after: Option<Duration>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    capacity: Capacity,
    /// Held from the look to the promise: else two starts are let in on the same memory.
    admitting: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Short work, before everything else and in order.
    chores: VecDeque<Chore>,
    sleepers: BTreeMap<String, Sleeper>,
    prefetches: VecDeque<(Timestamp, Arc<Machine>)>,
    /// Those that were told to stop and have not ended, and until when their memory counts as gone: a second one must not
    /// be stopped for the same need.
    ending: BTreeMap<String, (Timestamp, Sleeper)>,
    /// Those that are not frozen, as far as the server knows.
    runners: BTreeMap<String, Arc<Machine>>,
    /// Bytes that Machines had when they were last measured.
    known: BTreeMap<String, u64>,
    /// What starts were let in with, and until when that counts.
    promised: Vec<Promise>,
    /// When it is looked at the host's memory next, while somebody sleeps.
    look_at: Option<Timestamp>,
    /// Until when waiting programs are no news.
    relieved_until: Option<Timestamp>,
    /// How long page-outs waited for memory themselves.
    stalls: Stalls,
    ended: bool,
}

/// Memory that a start was let in with.
#[derive(Debug)]
struct Promise {
    machine: String,
    until: Timestamp,
    need: Need,
    taken: Arc<Taken>,
}

/// What was promised, what is known of it, and who it is if it runs already.
type Promised = (Need, Arc<Taken>, Option<Arc<Machine>>);

/// What a Machine was last seen to have of what it was promised, and when.
#[derive(Debug, Default)]
struct Taken(Mutex<Option<(Timestamp, u64)>>);

#[derive(Debug)]
enum Chore {
    Yield(Arc<Machine>),
    Keep(Arc<Machine>),
}

#[derive(Debug)]
struct Sleeper {
    machine: Arc<Machine>,
    mailbox: Post,
    since: Timestamp,
    /// As measured when it fell asleep, or after its page-out.
    memory: Option<Memory>,
    /// What is being done because memory is short.
    relief: Option<Relief>,
    /// What its last page-out left to be done.
    remainder: Remainder,
    /// When it is paged out; `None`: it was, or is not to be.
    due: Option<Timestamp>,
    /// Why it is paged out before its time.
    why: Option<String>,
    /// Whether something of it may be in swap.
    touched: bool,
    awake: Arc<AtomicBool>,
}

/// What a Machine did before it was found asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// It ran.
    Running,
    /// An earlier server may have paged it out.
    Unknown,
}

/// What the thread does next.
enum Job {
    Chore(Chore),
    Look,
    PageOut(String, Arc<Machine>, Arc<AtomicBool>),
    Prefetch(Arc<Machine>),
    End,
}

impl Pager {
    /// Starts the thread; it ends with [`Pager::end`].
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start(page_out_after: Option<Duration>, capacity: Capacity) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(capacity));
        let own = shared.clone();
        std::thread::Builder::new().name("perch-memory".to_owned()).spawn(move || own.work())?;
        Ok(Self { shared, page_out_after })
    }

    /// A Machine is frozen. `mailbox` hears of its page-out.
    pub(crate) fn fell_asleep(&self, machine: Arc<Machine>, past: Past, mailbox: Post) {
        let since = clock::now();
        let due = self.page_out_after.map(|after| since + after);
        let id = machine.spec().machine.clone();
        let sleeper = Sleeper {
            machine: machine.clone(),
            mailbox,
            since,
            memory: None,
            relief: None,
            remainder: Remainder::Movable,
            due,
            why: None,
            touched: past == Past::Unknown,
            awake: Arc::default(),
        };
        self.shared.change(|state| {
            state.prefetches.retain(|(_, waiting)| !Arc::ptr_eq(waiting, &machine));
            state.chores.push_back(Chore::Yield(machine));
            state.runners.remove(&id);
            // Whatever it has now is all that it takes.
            state.settle(&id);
            state.look_at.get_or_insert(since + LOOK_INTERVAL);
            if let Some(former) = state.sleepers.insert(id, sleeper) {
                former.awake.store(true, Ordering::Release);
            }
        });
    }

    /// A Machine goes on, or is about to. Never waits for the thread.
    pub(crate) fn woke(&self, machine: &Arc<Machine>, is_ending: bool) {
        self.shared.change(|state| {
            let id = &machine.spec().machine;
            let slept = state.sleepers.remove(id);
            if let Some(sleeper) = &slept {
                sleeper.awake.store(true, Ordering::Release);
            }
            state.chores.push_back(Chore::Keep(machine.clone()));
            let touched = slept.as_ref().is_some_and(|sleeper| sleeper.touched);
            if !state.ends(id, slept, is_ending) {
                state.runners.insert(id.clone(), machine.clone());
            }
            if touched && !is_ending && state.prefetches.len() < PREFETCHES_MAX {
                let at = clock::now() + PREFETCH_DELAY;
                state.prefetches.push_back((at, machine.clone()));
            }
        });
    }

    /// A run has begun.
    pub(crate) fn runs(&self, machine: &Arc<Machine>) {
        let id = machine.spec().machine.clone();
        let mut state = lock(&self.shared.state);
        state.ending.remove(&id);
        state.runners.insert(id, machine.clone());
    }

    /// Whether a start fits now. Those who sleep give way for it: then it will soon. Blocks if [`Pager::is_slow`].
    pub(crate) fn admit(&self, id: &str, most: u64) -> Result<(), String> {
        let known = lock(&self.shared.state).known.get(id).copied();
        let need = known.map_or(Need::AtMost(most), |known| Need::Known(known.min(most)));
        self.shared.admit(id, need)
    }

    /// Whether so much could be taken without anybody's loss; nobody gives way for it. Blocks.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let (facts, _) = self.shared.facts(TAKEN_KNOWN);
        let admission = memory::admit(&facts, &[], Need::Known(bytes));
        admission == Admission::Fits && !facts.is_pressed()
    }

    /// Whether looking for room takes milliseconds.
    pub(crate) fn is_slow(&self) -> bool {
        self.shared.capacity.is_slow()
    }

    /// A Machine is destroyed.
    pub(crate) fn forget(&self, id: &str) {
        self.shared.change(|state| {
            state.known.remove(id);
            state.settle(id);
        });
    }

    /// A run has ended, or could not begin.
    pub(crate) fn gone(&self, id: &str) {
        self.shared.change(|state| {
            state.runners.remove(id);
            state.ending.remove(id);
            state.settle(id);
            if let Some(sleeper) = state.sleepers.remove(id) {
                sleeper.awake.store(true, Ordering::Release);
            }
        });
    }

    /// Ends the thread at the next chunk.
    pub(crate) fn end(&self) {
        self.shared.change(|state| state.ended = true);
    }
}

impl Shared {
    fn new(capacity: Capacity) -> Self {
        let (state, changed, admitting) = Default::default();
        Self { state, changed, capacity, admitting }
    }

    fn change(&self, act: impl FnOnce(&mut State)) {
        act(&mut lock(&self.state));
        self.changed.notify_one();
    }

    fn work(&self) {
        if let Err(error) = perch_machine::memory::yield_rank() {
            tracing::warn!(%error, "sleepers may keep a rank among the kernel's choices");
        }
        loop {
            match self.next_job() {
                Job::Chore(chore) => self.run(chore),
                Job::Look => self.look(),
                Job::PageOut(id, machine, awake) => self.page_out(&id, &machine, &awake),
                Job::Prefetch(machine) => self.prefetch(&machine),
                Job::End => return,
            }
        }
    }

    fn next_job(&self) -> Job {
        let mut state = lock(&self.state);
        loop {
            let now = clock::now();
            if let Some(job) = state.job(now) {
                return job;
            }
            state = match state.next_due() {
                Some(due) => {
                    let waited = self.changed.wait_timeout(state, due.since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Whether a page-out may go on. Who woke wants back what is in swap before anything else has to go there.
    fn page_out_goes_on(&self) -> bool {
        while self.goes_on() {
            let due = lock(&self.state).due_prefetch(clock::now());
            let Some(machine) = due else { return true };
            self.prefetch(&machine);
        }
        false
    }

    /// Whether long work may go on. What cannot wait is done here, between two chunks.
    fn goes_on(&self) -> bool {
        loop {
            let mut state = lock(&self.state);
            if state.ended {
                return false;
            }
            let chore = state.chores.pop_front();
            let is_time = state.is_time_to_look(clock::now());
            drop(state);
            match chore {
                Some(chore) => self.run(chore),
                None if is_time => self.look(),
                None => return true,
            }
        }
    }

    fn run(&self, chore: Chore) {
        let (machine, done) = match &chore {
            Chore::Yield(machine) => (machine, machine.yield_memory()),
            Chore::Keep(machine) => (machine, machine.keep_memory()),
        };
        let id = &machine.spec().machine;
        if let Err(error) = done {
            tracing::warn!(machine = id, %error, "its rank among the kernel's choices is not as it should be");
        }
        if let Chore::Yield(machine) = &chore
            && let Ok(memory) = machine.memory()
        {
            lock(&self.state).measured(id, machine, memory);
        }
    }

    /// Sees to it that the reserve is there, as far as those who sleep can give it.
    fn look(&self) {
        let (facts, sleepers) = self.facts(TAKEN_KNOWN_CLOSELY);
        self.relieve(&facts, &sleepers, 0);
        let mut state = lock(&self.state);
        let next = clock::now() + LOOK_INTERVAL;
        state.look_at = (!state.sleepers.is_empty()).then_some(next);
    }

    fn admit(&self, id: &str, need: Need) -> Result<(), String> {
        let _only_one = lock(&self.admitting);
        let (mut facts, mut sleepers) = self.facts(TAKEN_KNOWN);
        if !memory::choose(&facts, &sleepers, need.wanted()).is_empty()
            || memory::admit(&facts, &sleepers, need) != Admission::Fits
        {
            (facts, sleepers) = self.facts(TAKEN_KNOWN_CLOSELY);
        }
        let admission = memory::admit(&facts, &sleepers, need);
        self.relieve(&facts, &sleepers, need.wanted());
        if admission != Admission::Fits {
            return Err(capacity::in_words(&facts, need.wanted()));
        }
        let until = clock::now() + memory::PROMISE;
        let promise = Promise { machine: id.to_owned(), until, need, taken: Arc::default() };
        lock(&self.state).promised.push(promise);
        Ok(())
    }

    /// As it is, but for what was taken of promises: that may be so old.
    fn facts(&self, taken_age: Duration) -> (Facts, Vec<memory::Sleeper>) {
        let now = clock::now();
        let mut state = lock(&self.state);
        state.promised.retain(|promise| now < promise.until);
        let promises = state.promises();
        state.forget_slow_ends(now);
        let still = state.sleepers.values().chain(state.ending.values().map(|(_, it)| it));
        let asleep: Vec<Memory> = still.filter_map(|it| it.memory).collect();
        let unknown = state.sleepers.values().filter(|it| it.memory.is_none());
        let unknown = unknown.map(|sleeper| &sleeper.machine);
        let runners: Vec<_> = unknown.chain(state.runners.values()).cloned().collect();
        let is_relieved = state.relieved_until.is_some_and(|until| now < until);
        let own_stalls = state.stalls.percent(now);
        drop(state);
        // Measured without the lock: nobody who wakes waits for it.
        let promised = owed(&promises, taken_age);
        let swap = swap();
        let mut facts = self.capacity.facts(&runners, &asleep, promised, swap, own_stalls);
        if is_relieved {
            facts.pressure = Pressure::Low;
        }
        let state = lock(&self.state);
        let ending = state.ending.iter().map(|(id, (_, it))| (id, it));
        let sleepers = state.sleepers.iter().chain(ending);
        (facts, sleepers.filter_map(|(id, it)| it.seen(id, swap)).collect())
    }

    fn relieve(&self, facts: &Facts, sleepers: &[memory::Sleeper], wanted: u64) {
        let chosen = memory::choose(facts, sleepers, wanted);
        if chosen.is_empty() {
            return;
        }
        let why = capacity::in_words(facts, wanted);
        let now = clock::now();
        self.change(|state| {
            if facts.is_pressed() {
                state.relieved_until = Some(now + PRESSURE_PAUSE);
            }
            for (machine, relief) in chosen {
                if let Some(sleeper) = state.sleepers.get_mut(&machine.to_string()) {
                    sleeper.give_way(relief, &why, now);
                }
            }
        });
    }

    fn page_out(&self, id: &str, machine: &Arc<Machine>, awake: &Arc<AtomicBool>) {
        if swap().total_bytes == 0 {
            return self.put_off(id, awake);
        }
        if let Some(sleeper) = lock(&self.state).of(id, awake) {
            // Also for who wakes in the middle.
            sleeper.touched = true;
        }
        let go_on = || self.page_out_goes_on() && !awake.load(Ordering::Acquire);
        let waited = |took| lock(&self.state).stalls.add(took, clock::now());
        match machine.page_out(&go_on, &waited) {
            Ok(paged) => self.on_paged_out(id, awake, paged),
            Err(error) => {
                tracing::warn!(machine = id, %error, "its memory could not be paged out");
                self.put_off(id, awake);
            }
        }
    }

    fn on_paged_out(&self, id: &str, awake: &Arc<AtomicBool>, paged: PagedOut) {
        let mut state = lock(&self.state);
        let Some(sleeper) = state.of(id, awake) else { return };
        sleeper.relief = None;
        sleeper.memory = Some(paged.memory);
        (sleeper.remainder, sleeper.due) = match paged.end {
            End::Done => (Remainder::Stays, None),
            End::CalledOff => (Remainder::Movable, None),
            End::SwapFull => (Remainder::Movable, Some(clock::now() + RETRY_AFTER)),
        };
        sleeper.touched = 0 < paged.memory.swapped_bytes;
        if paged.bytes == 0 {
            return;
        }
        let (run, why) = (sleeper.machine.run(), sleeper.why.take());
        // An event that finds a full mailbox is lost; what is in swap is measured when somebody asks.
        sleeper.mailbox.try_send(Command::PagedOut { run, paged, why }).ok();
    }

    fn put_off(&self, id: &str, awake: &Arc<AtomicBool>) {
        if let Some(sleeper) = lock(&self.state).of(id, awake) {
            sleeper.relief = None;
            sleeper.due = Some(clock::now() + RETRY_AFTER);
        }
    }

    fn prefetch(&self, machine: &Arc<Machine>) {
        let go_on = || !machine.is_frozen() && self.goes_on();
        if let Err(error) = machine.prefetch(&go_on, PREFETCH_BYTES_MAX) {
            let machine = &machine.spec().machine;
            tracing::debug!(machine, %error, "its memory is not read back ahead");
        }
    }
}

impl State {
    fn job(&mut self, now: Timestamp) -> Option<Job> {
        if self.ended {
            return Some(Job::End);
        }
        if let Some(chore) = self.chores.pop_front() {
            return Some(Job::Chore(chore));
        }
        if self.is_time_to_look(now) {
            return Some(Job::Look);
        }
        if let Some(machine) = self.due_prefetch(now) {
            return Some(Job::Prefetch(machine));
        }
        let due = self.sleepers.iter().filter(|(_, it)| it.due.is_some_and(|due| due <= now));
        let (id, first) = due.min_by_key(|(_, sleeper)| sleeper.due)?;
        Some(Job::PageOut(id.clone(), first.machine.clone(), first.awake.clone()))
    }

    fn due_prefetch(&mut self, now: Timestamp) -> Option<Arc<Machine>> {
        let due = self.prefetches.pop_front_if(|(at, _)| *at <= now);
        due.map(|(_, machine)| machine)
    }

    fn is_time_to_look(&self, now: Timestamp) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    fn measured(&mut self, id: &str, machine: &Arc<Machine>, memory: Memory) {
        let bytes = memory.anonymous_bytes.saturating_add(memory.swapped_bytes);
        self.known.insert(id.to_owned(), bytes);
        self.settle(id);
        let sleeper = self.sleepers.get_mut(id);
        if let Some(sleeper) = sleeper.filter(|it| Arc::ptr_eq(&it.machine, machine)) {
            sleeper.memory = Some(memory);
        }
    }

    /// What this Machine was promised it has, or wants no more.
    fn settle(&mut self, id: &str) {
        self.promised.retain(|promise| promise.machine != id);
    }

    /// What was promised, and to whom of those who run already.
    fn promises(&self) -> Vec<Promised> {
        let runner = |promise: &Promise| self.runners.get(&promise.machine).cloned();
        self.promised.iter().map(|it| (it.need, it.taken.clone(), runner(it))).collect()
    }

    fn next_due(&self) -> Option<Timestamp> {
        let sleepers = self.sleepers.values().filter_map(|sleeper| sleeper.due);
        sleepers.chain(self.look_at).chain(self.prefetches.front().map(|(at, _)| *at)).min()
    }

    /// Keeps a sleeper that wakes only to end; whether it is one.
    fn ends(&mut self, id: &str, slept: Option<Sleeper>, is_ending: bool) -> bool {
        match slept {
            Some(sleeper) if is_ending && sleeper.relief == Some(Relief::Stop) => {
                self.ending.insert(id.to_owned(), (clock::now() + ENDING_MAX, sleeper));
                true
            }
            _ if is_ending => self.ending.contains_key(id),
            _ => {
                self.ending.remove(id);
                false
            }
        }
    }

    /// Who takes long to end is a runner, for which others give way.
    fn forget_slow_ends(&mut self, now: Timestamp) {
        let is_slow = |(until, _): &(Timestamp, Sleeper)| *until <= now;
        let slow: Vec<String> =
            self.ending.iter().filter(|(_, it)| is_slow(it)).map(|(id, _)| id.clone()).collect();
        for id in slow {
            if let Some((_, sleeper)) = self.ending.remove(&id) {
                self.runners.insert(id, sleeper.machine);
            }
        }
    }

    /// The sleeper that a job was about, unless it woke meanwhile.
    fn of(&mut self, id: &str, awake: &Arc<AtomicBool>) -> Option<&mut Sleeper> {
        self.sleepers.get_mut(id).filter(|sleeper| Arc::ptr_eq(&sleeper.awake, awake))
    }
}

impl Taken {
    /// What was seen no longer ago than `age`, else what is seen now.
    fn known_for(&self, age: Duration, now: Timestamp, look: impl FnOnce() -> u64) -> u64 {
        let mut known = lock(&self.0);
        match *known {
            Some((at, bytes)) if now.since(at) < age => bytes,
            Some(_) | None => known.insert((now, look())).1,
        }
    }
}

impl Sleeper {
    /// For the decision; one that is not measured yet cannot be weighed.
    fn seen(&self, id: &str, swap: Swap) -> Option<memory::Sleeper> {
        let memory = self.memory?;
        Some(memory::Sleeper {
            machine: id.parse().ok()?,
            since: self.since,
            resident: memory.anonymous_bytes,
            store: swap.store_of(memory.swapped_bytes),
            relief: self.relief,
            remainder: self.remainder,
        })
    }

    fn give_way(&mut self, relief: Relief, why: &str, now: Timestamp) {
        match relief {
            Relief::PageOut => {
                self.due = Some(now);
                self.why = Some(why.to_owned());
            }
            Relief::Stop => {
                let (run, reason) = (self.machine.run(), why.to_owned());
                // One that does not hear it is asked again.
                if self.mailbox.try_send(Command::GiveWay { run, reason }).is_err() {
                    return;
                }
                self.awake.store(true, Ordering::Release);
                self.due = None;
            }
        }
        self.relief = Some(relief);
    }
}

/// Bytes of all promises that have not been taken: those count as used. Of starts that nothing is known of only the
/// largest counts: each as much as the default size, a burst of small ones would have every sleeper give way.
fn owed(promises: &[Promised], taken_age: Duration) -> u64 {
    let left = |(need, taken, machine): &Promised| {
        let Some(machine) = machine else { return *need };
        let has = || machine.charged().unwrap_or_default().anonymous_bytes;
        need.less(taken.known_for(taken_age, clock::now(), has))
    };
    let needs: Vec<Need> = promises.iter().map(left).collect();
    let known = needs.iter().map(|need| need.required()).fold(0, u64::saturating_add);
    let unknown = needs.iter().map(|need| need.wanted() - need.required()).max();
    known.saturating_add(unknown.unwrap_or(0))
}

/// The host's swap; none where the kernel does not tell.
pub(crate) fn swap() -> Swap {
    Swap::of_this_host().unwrap_or_else(|error| {
        tracing::debug!(error = chain(&error), "the host's swap is unknown");
        Swap::default()
    })
}

/// How deep a Machine sleeps and where its memory is, for the API.
pub(crate) fn shown(
    state: wire::MachineState,
    memory: Option<Memory>,
    swap: Swap,
) -> (Option<wire::Depth>, Option<wire::MachineMemory>) {
    use wire::MachineState as S;
    let depth = match (state, memory) {
        (S::Started, _) => Some(wire::Depth::Started),
        (S::Suspended, Some(memory)) if memory.is_paged_out() => {
            Some(wire::Depth::SuspendedPagedOut)
        }
        (S::Suspended, _) => Some(wire::Depth::SuspendedResident),
        (S::Stopped | S::Created | S::Failed, _) => Some(wire::Depth::Stopped),
        _ => None,
    };
    let memory = memory.map(|memory| wire::MachineMemory {
        resident_bytes: memory.resident_bytes,
        anonymous_bytes: memory.anonymous_bytes,
        swapped_bytes: memory.swapped_bytes,
        swap_store_bytes: swap.store_of(memory.swapped_bytes),
    });
    (depth, memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Reserve;
    use crate::size::Size;

    const MB: u64 = 1 << 20;

    /// Nobody is in it; only promises count.
    fn small_world() -> Shared {
        let (memory, reserve) = (Some(Size(600 * MB)), Reserve::Part(0));
        Shared::new(Capacity { memory, reserve, ceilings: perch_machine::Ceilings::default() })
    }

    #[test]
    fn what_an_unknown_start_was_let_in_with_is_not_there_for_the_next() {
        let shared = small_world();
        assert_eq!(shared.admit("a", Need::AtMost(u64::MAX)), Ok(()));
        let left = 600 * MB - memory::UNKNOWN_NEED;
        let refused = shared.admit("b", Need::Known(left + 1)).expect_err("it is promised");
        assert!(refused.contains("256 MiB are promised"), "{refused}");
        assert_eq!(shared.admit("b", Need::Known(left)), Ok(()));
        assert!(shared.admit("c", Need::AtMost(1)).is_err(), "all is promised");
    }

    #[test]
    fn a_burst_of_unknown_starts_is_promised_the_default_size_once() {
        let shared = small_world();
        for machine in ["a", "b", "c", "d"] {
            assert_eq!(shared.admit(machine, Need::AtMost(u64::MAX)), Ok(()), "{machine}");
        }
        assert_eq!(owed(&lock(&shared.state).promises(), TAKEN_KNOWN), memory::UNKNOWN_NEED);
        shared.admit("e", Need::Known(MB)).expect("there is room");
        assert_eq!(owed(&lock(&shared.state).promises(), TAKEN_KNOWN), memory::UNKNOWN_NEED + MB);
    }

    #[test]
    fn a_burst_of_starts_looks_once_at_what_an_earlier_one_has_taken() {
        let (taken, looks) = (Taken::default(), std::cell::Cell::new(0));
        let mut now = clock::now();
        let mut known_for = |age| {
            now = now + Duration::from_millis(1);
            let look = || {
                looks.set(looks.get() + 1);
                looks.get()
            };
            taken.known_for(age, now, look)
        };
        assert!((0..100).all(|_| known_for(TAKEN_KNOWN) == 1), "it is known");
        assert_eq!(known_for(TAKEN_KNOWN), 2, "it is too old");
        assert!((0..9).all(|_| known_for(TAKEN_KNOWN_CLOSELY) == 2));
        assert_eq!(known_for(TAKEN_KNOWN_CLOSELY), 3, "somebody would have to give way for it");
        assert_eq!(looks.get(), 3);
    }

    #[test]
    fn starts_at_the_same_time_are_let_in_on_memory_of_their_own() {
        // Each round is one chance to come between another's look and its promise.
        for _ in 0..100 {
            let shared = small_world();
            let begin = std::sync::Barrier::new(8);
            let start = || {
                begin.wait();
                shared.admit("a", Need::Known(100 * MB)).is_ok()
            };
            let fit = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                starts.into_iter().filter_map(|it| it.join().ok()).filter(|fits| *fits).count()
            });
            assert_eq!(fit, 6);
        }
    }

    #[test]
    fn a_promise_ends_with_its_time_or_when_what_became_of_it_is_seen() {
        let shared = small_world();
        let promise = |machine: &str, until| {
            let need = Need::Known(600 * MB);
            let (machine, taken) = (machine.to_owned(), Arc::default());
            let promise = Promise { machine, until, need, taken };
            lock(&shared.state).promised.push(promise);
        };
        let all = Need::Known(600 * MB);
        promise("a", clock::now());
        assert_eq!(shared.admit("b", all), Ok(()));
        let last = |state: &State| state.promised.iter().map(|it| it.until).max();
        let until = last(&lock(&shared.state)).expect("promised");
        assert!(until <= clock::now() + memory::PROMISE);
        assert!(shared.admit("c", all).is_err());
        lock(&shared.state).settle("b");
        assert_eq!(shared.admit("c", all), Ok(()));
    }

    #[test]
    fn a_promise_goes_with_a_failed_start_and_with_a_destroyed_machine() {
        let pager = Pager { shared: Arc::new(small_world()), page_out_after: None };
        let need = Need::Known(600 * MB);
        for end in [Pager::gone, Pager::forget] {
            pager.shared.admit("a", need).expect("nothing is promised");
            end(&pager, "b");
            assert!(pager.shared.admit("c", need).is_err(), "another's promise stays");
            end(&pager, "a");
        }
        assert_eq!(owed(&lock(&pager.shared.state).promises(), TAKEN_KNOWN), 0);
    }

    #[test]
    fn the_depth_is_what_was_measured() {
        let memory = |anonymous_bytes, swapped_bytes| {
            Some(Memory { resident_bytes: 9, anonymous_bytes, swapped_bytes })
        };
        let depth = |state, memory| shown(state, memory, Swap::default()).0;
        use wire::{Depth, MachineState as S};
        assert_eq!(depth(S::Started, memory(1, 2)), Some(Depth::Started));
        assert_eq!(depth(S::Suspended, memory(2, 1)), Some(Depth::SuspendedResident));
        assert_eq!(depth(S::Suspended, memory(1, 2)), Some(Depth::SuspendedPagedOut));
        assert_eq!(depth(S::Suspended, None), Some(Depth::SuspendedResident));
        assert_eq!(depth(S::Stopped, None), Some(Depth::Stopped));
        assert_eq!(depth(S::Stopping, memory(1, 2)), None);
    }
}
