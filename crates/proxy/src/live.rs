//! Who an app is awake for just now: answers the server's question.
//!
//! Connections are looked at in pieces, between which everybody else has his turn, and only as many callers are kept
//! as are told. What is told of each is what its connection holds anyway (`presence`): of a request that was replayed
//! to another app the app that was called, of HTTP/2 the connection and not each stream, of several Machines not which
//! one it is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use perch_core::time::Timestamp;

use crate::Endpoints;
use crate::app::App;
use crate::clock;
use crate::control::{AddressKind, AddressView, Live, LiveCaller};
use crate::crowd::Crowd;
use crate::directory::Directory;
use crate::http::connection::{describe, host_of};
use crate::presence::{Doing, Presence, What};
use crate::udp::Udp;

/// Connections that are looked at without a pause: 0.1 ms.
const AT_ONCE: usize = 512;
/// Callers that are told, at most: 60 kB.
const CALLERS_MAX: usize = 100;

/// All who may have callers.
pub(crate) struct Visitors {
    pub(crate) directory: Rc<Directory>,
    pub(crate) crowd: Rc<Crowd>,
    pub(crate) udp: Weak<Udp>,
}

/// A caller, as it was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) ends: Endpoints,
    pub(crate) what: &'static str,
    pub(crate) since: Timestamp,
    pub(crate) streams: u32,
    pub(crate) resting: bool,
    pub(crate) request: Option<String>,
}

impl Visitors {
    /// `None`: there is no such app.
    pub(crate) async fn of(&self, name: &str, callers_max: usize) -> Option<Live> {
        let (app, addresses) = self.directory.find(name)?;
        let mut longest = Longest::new(callers_max.min(CALLERS_MAX));
        if let Some(udp) = self.udp.upgrade() {
            udp.see(&app, |seen| longest.take(seen));
        }
        for (piece, numbers) in self.crowd.numbers().chunks(AT_ONCE).enumerate() {
            if piece != 0 {
                tokio::task::yield_now().await;
            }
            self.crowd.look(numbers, |presence| {
                if let Some(seen) = self.see(&app, &addresses, presence) {
                    longest.take(seen);
                }
            });
        }
        longest.cut();
        name_held(&app, &mut longest.kept);
        let (machines, waiting) = app.live();
        let more = longest.left_out;
        let callers = longest.kept.into_iter().map(|seen| self.told(seen)).collect();
        Some(Live { machines, callers, more, waiting })
    }

    /// The caller of a connection, if it is this app's.
    fn see(&self, app: &Rc<App>, addresses: &[AddressView], presence: &Presence) -> Option<Seen> {
        let Doing { what, resting, streams, since } = presence.doing();
        let what = match what {
            What::Nothing => return None,
            What::Request => "request",
            What::Upgraded => "upgraded",
            What::Raw => "connection",
            What::Streams => "http2",
        };
        let ends = presence.ends()?;
        let address = addresses.iter().find(|address| address.ip == ends.dest.ip())?;
        let is_its = address.kind != AddressKind::Shared
            || presence.read(|head| {
                let named = self.directory.app_by_host(host_of(head), ends.dest.ip());
                named.is_some_and(|named| Rc::ptr_eq(&named, app))
            });
        let request = presence.read(describe);
        is_its.then_some(Seen { ends, what, since, streams, resting, request })
    }

    fn told(&self, seen: Seen) -> LiveCaller {
        let Seen { ends, what, since, streams, resting, request } = seen;
        LiveCaller {
            cause: self.directory.resolve(ends).cause(request),
            what: what.to_owned(),
            age_ms: u64::try_from(clock::now().since(since).as_millis()).unwrap_or(u64::MAX),
            streams,
            resting,
        }
    }
}

/// The head of a request that waits for a Machine is with its connection; the queue has the first line of it.
fn name_held(app: &App, callers: &mut [Seen]) {
    let unnamed = callers.iter_mut().filter(|it| it.what == "request" && it.request.is_none());
    let mut unnamed: HashMap<SocketAddr, _> =
        unnamed.map(|seen| (seen.ends.caller, &mut seen.request)).collect();
    if unnamed.is_empty() {
        return;
    }
    app.see_held(|cause| {
        if let Some(request) = unnamed.get_mut(&SocketAddr::new(cause.caller, cause.caller_port)) {
            **request = cause.request.clone();
        }
    });
}

/// Of many callers those who are there for longest; load comes before what rests.
struct Longest {
    kept: Vec<Seen>,
    limit: usize,
    left_out: u64,
}

impl Longest {
    fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, left_out: 0 }
    }

    fn take(&mut self, seen: Seen) {
        self.kept.push(seen);
        // Cut now and then, not each time.
        if 2 * self.limit + AT_ONCE <= self.kept.len() {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.kept.sort_unstable_by_key(|seen| (seen.resting, seen.since));
        let left_out = self.kept.len().saturating_sub(self.limit);
        self.left_out += left_out as u64;
        self.kept.truncate(self.limit);
    }
}
