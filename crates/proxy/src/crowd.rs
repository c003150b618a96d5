//! Who is connected: a share of all places for each source, and room for others when places run out.
//!
//! A place is scarce (two descriptors), and a caller that only connects costs itself nothing. A stream of HTTP/2 takes one
//! as well, but for the first of its connection: of all, of its source's, of its caller's and of its app's. What can
//! be taken back without harm is a connection on which nobody has asked anything for a while: the
//! longest idle goes first. Raw connections and requests under way are never closed for others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use perch_core::time::Timestamp;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::presence::{Presence, What};
use crate::shares::{Account, Share, Shares};

/// Of all connections at once, one source (a Machine, or the host in one network) has at most one in
/// so many.
const SOURCES_MIN: usize = 4;
/// Of all connections one app has at most one in so many: whoever fills it leaves others theirs.
const APPS_MIN: usize = 2;
/// Of who is turned away it is told so often at the most.
const TOLD_INTERVAL: Duration = Duration::from_secs(1);
/// A connection is not taken for idle earlier: its caller may be about to ask.
const IDLE_MIN: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };
/// Of the connections in question one in so many is closed at once, so that looking for them costs
/// each newcomer little.
const CLOSED_AT_ONCE: usize = 100;
/// After a look that found nothing to close, the next one for the same source or app waits for so long.
const FUTILE_PAUSE: Duration = Duration::from_millis(50);
/// In that time all sources and apps together have so many of these looks: with all places taken one costs half a
/// millisecond.
const FUTILE_LOOKS_MAX: u32 = 25;

/// Whether a connection waits for its caller to ask, and since when; what it does else; and where it may get more places.
#[derive(Debug)]
pub(crate) struct Idle {
    since: Cell<Option<Instant>>,
    pub(crate) presence: Presence,
    crowd: Rc<Crowd>,
    number: u64,
}

impl Idle {
    pub(crate) fn begin(&self, now: Instant) {
        self.since.set(Some(now));
        self.presence.begin(What::Nothing, Timestamp::ZERO);
    }

    pub(crate) fn end(&self) {
        self.since.set(None);
    }

    /// Where this connection gets more places; `None`: it was closed.
    pub(crate) fn room(&self) -> Option<Rc<Room>> {
        let members = self.crowd.members.borrow();
        let Member { shares: [calls, places], app, .. } = members.get(&self.number)?;
        let (calls, places) = (calls.account(), places.account());
        let app = app.as_ref().map(|(_, share)| share.account());
        Some(Rc::new(Room { crowd: Rc::clone(&self.crowd), calls, places, app }))
    }
}

/// Where a connection gets more places than its own, for streams beside its first one.
#[derive(Debug)]
pub(crate) struct Room {
    crowd: Rc<Crowd>,
    calls: Account<IpAddr>,
    places: Account<IpAddr>,
    /// Of a shared address nobody knows it.
    app: Option<Account<usize>>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSeat {
    #[error("the caller has as many connections as it may have")]
    Caller,
    #[error("the app has half of all connections that there may be")]
    App,
    #[error("all places are taken")]
    All,
}

impl Room {
    /// A place more. Four counters, without a look at anything else.
    pub(crate) fn seat(self: &Rc<Self>) -> Result<Seat, NoSeat> {
        if !self.calls.take() {
            return Err(NoSeat::Caller);
        }
        if !self.places.take() {
            self.calls.give_back();
            return Err(NoSeat::Caller);
        }
        if !self.app.as_ref().is_none_or(Account::take) {
            self.give_back_shares();
            return Err(NoSeat::App);
        }
        match self.crowd.limit.try_acquire() {
            Ok(permit) => {
                permit.forget();
                Ok(Seat(Rc::clone(self)))
            }
            Err(_) => {
                self.give_back_shares();
                self.app.iter().for_each(Account::give_back);
                Err(NoSeat::All)
            }
        }
    }

    /// Those of the source.
    fn give_back_shares(&self) {
        self.calls.give_back();
        self.places.give_back();
    }

    /// As [`Crowd::turned_away`].
    pub(crate) fn turned_away(&self) -> Option<u64> {
        self.crowd.turned_away()
    }
}

/// A place beside that of a connection; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Rc<Room>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.give_back_shares();
        self.0.app.iter().for_each(Account::give_back);
        self.0.crowd.give_back();
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Crowd {
    places: usize,
    /// A permit for each place.
    limit: Rc<Semaphore>,
    /// Told when the last place is given back.
    emptied: Notify,
    /// Places of each source.
    shares: Rc<Shares<IpAddr>>,
    /// The same, each within what its caller may have.
    calls: Rc<Shares<IpAddr>>,
    /// Places at each app, by its place in memory.
    apps: Rc<Shares<usize>>,
    /// When it was told last that somebody was turned away, and how many were since.
    told: Cell<(Option<Instant>, u64)>,
    members: RefCell<HashMap<u64, Member>>,
    last: Cell<u64>,
    /// Futile looks since when.
    looks: Cell<(Option<Instant>, u32)>,
}

#[derive(Debug)]
struct Member {
    source: IpAddr,
    shares: [Share<IpAddr>; 2],
    app: Option<(usize, Share<usize>)>,
    idle: Rc<Idle>,
    task: AbortHandle,
}

/// A newcomer, who has a share but no task yet.
pub(crate) struct Newcomer {
    source: IpAddr,
    shares: [Share<IpAddr>; 2],
    app: Option<(usize, Share<usize>)>,
    pub(crate) number: u64,
    pub(crate) idle: Rc<Idle>,
}

impl Crowd {
    pub(crate) fn new(places: usize) -> Rc<Self> {
        Rc::new(Self {
            places,
            limit: Rc::new(Semaphore::new(places)),
            emptied: Notify::new(),
            shares: Shares::new((places / SOURCES_MIN).max(1)),
            calls: Shares::new(places),
            apps: Shares::new((places / APPS_MIN).max(1)),
            told: Cell::default(),
            members: RefCell::default(),
            last: Cell::new(0),
            looks: Cell::default(),
        })
    }

    /// A permit for each place.
    pub(crate) fn limit(&self) -> Rc<Semaphore> {
        Rc::clone(&self.limit)
    }

    /// Gives back a place whose permit was forgotten.
    pub(crate) fn give_back(&self) {
        self.limit.add_permits(1);
        if self.limit.available_permits() == self.places {
            self.emptied.notify_one();
        }
    }

    /// Waits until nobody has a place. Meanwhile places can be had as before, by streams of who is connected.
    pub(crate) async fn emptied(&self) {
        while self.limit.available_permits() < self.places {
            self.emptied.notified().await;
        }
    }

    /// Connections that are open.
    pub(crate) fn len(&self) -> usize {
        self.members.borrow().len()
    }

    /// `None`: the source has its share, or as many connections as it may have, and uses all of it.
    pub(crate) fn receive(self: &Rc<Self>, source: IpAddr, max: usize) -> Option<Newcomer> {
        let take = || Some([self.calls.take_of(source, max)?, self.shares.take(source)?]);
        let shares = take().or_else(|| {
            self.close_some((&self.calls, source), |member| member.source == source);
            take()
        })?;
        let number = self.last.get() + 1;
        self.last.set(number);
        let (since, presence) = (Cell::new(None), Presence::new());
        let idle = Idle { since, presence, crowd: Rc::clone(self), number };
        Some(Newcomer { source, shares, app: None, number, idle: Rc::new(idle) })
    }

    /// Lets a newcomer in to an app; false: that has its share of all connections, and uses all of it.
    pub(crate) fn settle(&self, newcomer: &mut Newcomer, app: usize) -> bool {
        let share = self.apps.take(app).or_else(|| {
            let of = |member: &Member| member.app.as_ref().is_some_and(|(own, _)| *own == app);
            self.close_some((&self.apps, app), of);
            self.apps.take(app)
        });
        newcomer.app = share.map(|share| (app, share));
        newcomer.app.is_some()
    }

    /// Somebody was turned away: how many were since it was told last, if it is to be told now.
    pub(crate) fn turned_away(&self) -> Option<u64> {
        let (now, (last, others)) = (Instant::now(), self.told.get());
        let is_due = last.is_none_or(|last| last + TOLD_INTERVAL <= now);
        self.told.set(if is_due { (Some(now), 0) } else { (last, others + 1) });
        is_due.then_some(others)
    }

    /// Some of the idle ones among these, who have all of a share, unless there were none a moment ago.
    fn close_some<K: Copy + Eq + Hash>(
        &self,
        (shares, whose): (&Shares<K>, K),
        of: impl Fn(&Member) -> bool,
    ) {
        let now = Instant::now();
        if shares.futile_until(whose).is_some_and(|until| now < until) || !self.may_look(now) {
            return;
        }
        if self.close_idle(of) == 0 {
            shares.note_futile(whose, now + FUTILE_PAUSE);
            let (since, count) = self.looks.get();
            self.looks.set((since, count + 1));
        }
    }

    /// Whether not too many looks were futile just now.
    fn may_look(&self, now: Instant) -> bool {
        let (since, count) = self.looks.get();
        if since.is_none_or(|since| since + FUTILE_PAUSE <= now) {
            self.looks.set((Some(now), 0));
            return true;
        }
        count < FUTILE_LOOKS_MAX
    }

    pub(crate) fn enter(&self, newcomer: Newcomer, task: AbortHandle) {
        let Newcomer { source, shares, app, number, idle } = newcomer;
        let member = Member { source, shares, app, idle, task };
        self.members.borrow_mut().insert(number, member);
    }

    pub(crate) fn leave(&self, number: u64) {
        // One that was closed is no member any more.
        let left = self.members.borrow_mut().remove(&number);
        drop(left);
    }

    /// Who is connected now, to be given to [`Self::look`] piece by piece.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.members.borrow().keys().copied().collect()
    }

    /// Shows what those of them do who are still connected.
    pub(crate) fn look(&self, numbers: &[u64], mut see: impl FnMut(&Presence)) {
        let members = self.members.borrow();
        let present = numbers.iter().filter_map(|number| members.get(number));
        present.for_each(|member| see(&member.idle.presence));
    }

    /// Closes some of the longest idle, whoever they are.
    pub(crate) fn make_room(&self) {
        let closed = self.close_idle(|_| true);
        tracing::warn!(closed, "all places for connections are taken");
    }

    fn close_idle(&self, of: impl Fn(&Member) -> bool) -> usize {
        let now = Instant::now();
        let mut members = self.members.borrow_mut();
        let asked = members.iter().filter(|(_, member)| of(member));
        let since = asked.filter_map(|(number, member)| Some((member.idle.since.get()?, *number)));
        let mut idle: Vec<_> = since.filter(|(since, _)| *since + IDLE_MIN <= now).collect();
        idle.sort_unstable();
        idle.truncate((self.places / SOURCES_MIN / CLOSED_AT_ONCE).max(1));
        for (_, number) in &idle {
            if let Some(member) = members.remove(number) {
                member.task.abort();
            }
        }
        idle.len()
    }
}
