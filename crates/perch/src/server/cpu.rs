//! Has Machines above their baseline yield the CPUs to others; `core`'s accounts decide which.
//!
//! Only Machines that are awake are looked at, each when it could have used up what it saved: 100 times a second at most,
//! 20 times while it yields, once a second when it does little. A look is one small file, 7 µs. One that falls asleep, is
//! signalled or killed is taken back first: nobody is to wait for what has only the rest of the CPUs. A server that ends
//! takes all back; what one that dies leaves is taken up by the next.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_core::cpu::{Account, Class};
use perch_core::time::Timestamp;
use perch_machine::{Cpu, Machine};
use tokio::sync::Notify;

use super::clock;
use super::machine::sleep_or_never;
use super::platform_log::Line;
use super::world::{World, lock};

/// A run is opened so long after it was heard of, beside its start.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Those that are due so soon are looked at together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Who yields so long hears of it, once in a run.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// What a run did before it was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// It has just begun.
    Fresh,
    /// An earlier server may have put it into the idle class.
    Unknown,
}

/// All Machines that are awake.
#[derive(Debug)]
pub(crate) struct Cpus {
    is_on: bool,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    awake: BTreeMap<String, Place>,
    /// Found asleep: to be taken back, if they have to be.
    leftovers: Vec<Arc<Machine>>,
    /// When the task looks next; `None`: when it is told to.
    wake_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Place {
    due: Timestamp,
    watched: Arc<Watched>,
}

/// A run that is awake.
#[derive(Debug)]
struct Watched {
    machine: Arc<Machine>,
    since: Timestamp,
    books: Mutex<Books>,
}

#[derive(Debug)]
enum Books {
    Unopened(Past),
    Open(Open),
    /// It sleeps or is gone.
    Closed,
}

#[derive(Debug)]
struct Open {
    cpu: Cpu,
    account: Account,
    /// As the kernel was told.
    class: Class,
    /// Since when it yields.
    yields_since: Option<Timestamp>,
    is_told: bool,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It is looked at again then.
    Due(Timestamp),
    /// The same, and it has yielded so long that it is told.
    Told(Timestamp),
    /// It is not looked at any more.
    Done,
}

impl Cpus {
    /// `is_on`: whether anybody yields.
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, state: Mutex::default(), changed: Notify::new() }
    }

    /// A run is awake. Costs its start nothing but this.
    pub(crate) fn awake(&self, machine: &Arc<Machine>, past: Past) {
        if !self.is_on {
            return if past == Past::Unknown {
                self.leave(machine.clone())
            };
        }
        let since = clock::now();
        let due = since + FIRST_LOOK;
        let books = Mutex::new(Books::Unopened(past));
        let mut state = lock(&self.state);
        let known = state.awake.get(&machine.spec().machine);
        if known.is_some_and(|known| Arc::ptr_eq(&known.watched.machine, machine)) {
            return;
        }
        let watched = Arc::new(Watched { machine: machine.clone(), since, books });
        state.awake.insert(machine.spec().machine.clone(), Place { due, watched });
        if state.wake_at.is_none_or(|at| due < at) {
            self.changed.notify_one();
        }
    }

    /// A run is frozen. It is not in the idle class when this returns, if this server put it there.
    pub(crate) fn asleep(&self, machine: &Arc<Machine>) {
        match self.remove(&machine.spec().machine) {
            Some(known) if known.machine.run() == machine.run() => {
                if known.close() == Past::Unknown {
                    self.leave(machine.clone());
                }
            }
            Some(_) | None => self.leave(machine.clone()),
        }
    }

    /// Something is asked of a run, and somebody waits for it.
    pub(crate) fn lift(&self, id: &str) {
        let watched = lock(&self.state).awake.get(id).map(|place| place.watched.clone());
        if let Some(watched) = watched {
            watched.lift();
        }
    }

    /// A run has ended, and its cgroups with it.
    pub(crate) fn gone(&self, id: &str) {
        self.remove(id);
    }

    fn remove(&self, id: &str) -> Option<Arc<Watched>> {
        lock(&self.state).awake.remove(id).map(|place| place.watched)
    }

    fn leave(&self, machine: Arc<Machine>) {
        lock(&self.state).leftovers.push(machine);
        self.changed.notify_one();
    }

    /// When to look next.
    fn next_due(&self) -> Option<Timestamp> {
        let mut state = lock(&self.state);
        let first = state.awake.values().map(|place| place.due).min();
        state.wake_at = if state.leftovers.is_empty() { first } else { Some(Timestamp::ZERO) };
        state.wake_at
    }

    /// Looks at all that are due, and answers who is to be told. Blocks.
    fn look(&self) -> Vec<Arc<Machine>> {
        let now = clock::now();
        let (leftovers, due) = {
            let mut state = lock(&self.state);
            let is_due = |place: &&Place| place.due <= now + TOGETHER;
            let due = state.awake.values().filter(is_due).map(|place| place.watched.clone());
            let due: Vec<_> = due.collect();
            (std::mem::take(&mut state.leftovers), due)
        };
        leftovers.iter().for_each(|machine| take_back(machine));
        let mut told = Vec::new();
        for watched in due {
            let seen = watched.look();
            if let Seen::Told(_) = seen {
                told.push(watched.machine.clone());
            }
            self.settle(&watched, seen);
        }
        told
    }

    fn settle(&self, watched: &Arc<Watched>, seen: Seen) {
        let (mut state, id) = (lock(&self.state), &watched.machine.spec().machine);
        let same = state.awake.get_mut(id).filter(|place| Arc::ptr_eq(&place.watched, watched));
        match (seen, same) {
            (Seen::Due(at) | Seen::Told(at), Some(place)) => place.due = at,
            (Seen::Done, Some(_)) => drop(state.awake.remove(id)),
            (_, None) => {}
        }
    }

    fn close_all(&self) {
        let awake = std::mem::take(&mut lock(&self.state).awake);
        for place in awake.values() {
            place.watched.close();
        }
    }
}

/// What an earlier server left in the idle class.
fn take_back(machine: &Machine) {
    let Some(cpu) = machine.cpu() else { return };
    let machine = &machine.spec().machine;
    let taken = cpu.take_up().and_then(|class| match class {
        Class::Idle => enter(&cpu, Class::Normal, machine),
        Class::Normal => Ok(()),
    });
    if let Err(error) = taken {
        tracing::debug!(machine, %error, "its class stays");
    }
}

fn enter(cpu: &Cpu, class: Class, machine: &str) -> io::Result<()> {
    cpu.enter(class)?;
    tracing::debug!(machine, ?class, "its part of the CPUs");
    Ok(())
}

impl Watched {
    fn look(&self) -> Seen {
        let mut books = lock(&self.books);
        let seen = match &mut *books {
            Books::Unopened(past) => match self.open(*past) {
                Ok(Some(open)) => {
                    let seen = Seen::Due(open.account.next_look());
                    *books = Books::Open(open);
                    Ok(seen)
                }
                Ok(None) => Ok(Seen::Done),
                Err(error) => Err(error),
            },
            Books::Open(open) => open.look(&self.machine, clock::now()),
            Books::Closed => Ok(Seen::Done),
        };
        seen.unwrap_or_else(|error| {
            tracing::debug!(machine = self.id(), %error, "its CPUs are not looked at any more");
            Seen::Done
        })
    }

    fn open(&self, past: Past) -> io::Result<Option<Open>> {
        let Some(cpu) = self.machine.cpu() else { return Ok(None) };
        let (class, used, at) = match past {
            Past::Fresh => (Class::Normal, Duration::ZERO, self.since),
            Past::Unknown => (cpu.take_up()?, cpu.used()?, clock::now()),
        };
        let account = Account::open(cpu.rates(), class, used, at);
        let mut open = Open { cpu, account, class, yields_since: None, is_told: false };
        if past == Past::Fresh {
            open.look(&self.machine, clock::now())?;
        }
        Ok(Some(open))
    }

    fn lift(&self) {
        match &mut *lock(&self.books) {
            Books::Open(open) => {
                open.account.lift();
                if let Err(error) = open.enter(Class::Normal, self.id()) {
                    tracing::debug!(machine = self.id(), %error, "its class stays");
                }
            }
            Books::Unopened(Past::Unknown) => take_back(&self.machine),
            Books::Unopened(Past::Fresh) | Books::Closed => {}
        }
    }

    /// Takes it back, for good. Answers whether it was known what there is to take back.
    fn close(&self) -> Past {
        let mut books = lock(&self.books);
        match std::mem::replace(&mut *books, Books::Closed) {
            Books::Unopened(past) => return past,
            Books::Open(mut open) => {
                if let Err(error) = open.enter(Class::Normal, self.id()) {
                    tracing::debug!(machine = self.id(), %error, "its class stays");
                }
            }
            Books::Closed => {}
        }
        Past::Fresh
    }

    fn id(&self) -> &str {
        &self.machine.spec().machine
    }
}

impl Open {
    fn look(&mut self, machine: &Machine, now: Timestamp) -> io::Result<Seen> {
        let wanted = self.account.look(self.cpu.used()?, now);
        match self.enter(wanted, &machine.spec().machine) {
            // Tried again at the next look: it must not stay there.
            Err(error) if wanted == Class::Normal => {
                tracing::debug!(machine = machine.spec().machine, %error, "its class stays");
            }
            entered => entered?,
        }
        let due = self.account.next_look();
        let since = self.yields_since.filter(|_| !self.is_told);
        if since.is_some_and(|since| TELL_AFTER <= now.since(since)) {
            self.is_told = true;
            return Ok(Seen::Told(due));
        }
        Ok(Seen::Due(due))
    }

    fn enter(&mut self, class: Class, machine: &str) -> io::Result<()> {
        if self.class != class {
            enter(&self.cpu, class, machine)?;
            self.class = class;
        }
        match class {
            Class::Idle => drop(self.yields_since.get_or_insert_with(clock::now)),
            Class::Normal => self.yields_since = None,
        }
        Ok(())
    }
}

/// Looks until the server ends; then everybody is taken back.
pub(crate) async fn watch(world: Arc<World>) {
    loop {
        let due = world.cpus.next_due().map(|at| at.since(clock::now()));
        tokio::select! {
            () = sleep_or_never(due) => {}
            () = world.cpus.changed.notified() => continue,
            () = world.shutdown.cancelled() => break,
        }
        let looker = world.clone();
        match tokio::task::spawn_blocking(move || looker.cpus.look()).await {
            Ok(told) => told.iter().for_each(|machine| tell(&world, machine)),
            Err(error) => tracing::error!(%error, "a look at the CPUs was interrupted"),
        }
    }
    let closer = world.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || closer.cpus.close_all()).await {
        tracing::warn!(%error, "Machines may stay in the idle class");
    }
}

/// Into the app's log, beside what its programs say.
fn tell(world: &World, machine: &Machine) {
    let line = Line {
        timestamp: clock::stamp_micros(clock::unix().as_micros() as u64),
        machine: machine.spec().machine.clone(),
        provider: "runner",
        level: "info".to_owned(),
        text: format!(
            "it uses more than its baseline of CPU, a sixteenth of each shared CPU, for {} s now: it has what others \
             leave, until it uses less (cpu_kind = \"performance\" has whole CPUs)",
            TELL_AFTER.as_secs()
        ),
    };
    world.platform_log.push(&machine.spec().app, line);
}
