//! What an app is awake for just now, in the words of the control connection.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::types::{Autostop, Cause};

/// The kind of a [`Reason`] behind which the server knows more.
pub const HELD: &str = "held";
/// What is said of it by who does not know more.
pub const HELD_TEXT: &str = "somebody holds it awake";

/// What the proxy knows of an app at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Those that are awake.
    pub machines: Vec<LiveMachine>,
    /// Who is served or waits, since longest first.
    pub callers: Vec<LiveCaller>,
    /// So many more are not listed.
    pub more: u64,
    /// So many callers wait for a place.
    pub waiting: u64,
}

/// A Machine that is awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMachine {
    /// Its id.
    pub machine: String,
    /// The run that is up.
    pub run: u64,
    /// Requests, connections and sessions that keep it awake.
    pub load: u64,
    /// Connections that rest: they keep nobody awake.
    pub resting: u64,
    /// How long nobody has used it, in milliseconds; without meaning while there is load.
    pub unused_ms: u64,
    /// When it sleeps, in milliseconds, if nobody comes; `None`: not by itself.
    pub sleeps_in_ms: Option<u64>,
    /// How it will sleep.
    pub by: Autostop,
    /// It is drained, or being put to sleep.
    pub leaving: bool,
    /// What keeps it awake beside load.
    pub reasons: Vec<Reason>,
}

/// What was served of an app since the proxy began; only what is in flight can become less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCounts {
    /// Its name.
    pub app: String,
    /// In flight now, of all its Machines.
    pub concurrency: u64,
    /// Answers of Machines, by the first digit of their status, from 1.
    pub answers: [u64; 5],
    /// Answers of the proxy itself.
    pub own: [u64; 5],
    /// Connections of callers to addresses that are this app's alone.
    pub connects: u64,
    /// Those of them that have ended.
    pub disconnects: u64,
}

/// What keeps a Machine awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// In one word: `no_services`, `autostop_off`, [`HELD`], `cordoned`, `min_machines_running`, `load_of_others`,
    /// `awaited`, `starting`, `no_server`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// Somebody who is served, or waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCaller {
    /// Who calls, and what for.
    pub cause: Cause,
    /// `request`; `upgraded`: a WebSocket or the like; `connection`: raw TCP; `http2`: a connection with streams;
    /// `session`: of UDP.
    pub what: String,
    /// Since when, in milliseconds before now.
    pub age_ms: u64,
    /// Streams in flight of an `http2`, else 0.
    pub streams: u32,
    /// It rests, and keeps nobody awake.
    pub resting: bool,
}

impl Live {
    /// Adds what a retired proxy says of the same app: whom it still serves, and for whom Machines are awake there. Callers
    /// are listed as by one proxy, at most so many.
    pub fn add_retired(&mut self, retired: Self, callers_max: usize) {
        for machine in retired.machines {
            match self.machines.iter_mut().find(|known| known.machine == machine.machine) {
                Some(known) => known.add_retired(&machine),
                None => self.machines.push(machine),
            }
        }
        self.callers.extend(retired.callers);
        self.callers.sort_by_key(|caller| (caller.resting, Reverse(caller.age_ms)));
        let left_out = self.callers.len().saturating_sub(callers_max);
        self.callers.truncate(callers_max);
        self.more += retired.more + left_out as u64;
        self.waiting += retired.waiting;
    }
}

impl LiveMachine {
    /// It sleeps when both let it; what else keeps it awake is said by the one that decides.
    fn add_retired(&mut self, retired: &Self) {
        if self.run != retired.run {
            return;
        }
        self.load += retired.load;
        self.resting += retired.resting;
        self.unused_ms = self.unused_ms.min(retired.unused_ms);
        let last = self.sleeps_in_ms.max(retired.sleeps_in_ms);
        self.sleeps_in_ms = self.sleeps_in_ms.and(last).filter(|_| self.load == 0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use super::super::types::Source;
    use super::*;

    fn machine(run: u64, load: u64, sleeps_in_ms: Option<u64>) -> LiveMachine {
        let (machine, reasons) = ("m".to_owned(), Vec::new());
        let (by, unused_ms) = (Autostop::Stop, 100 * (load + 1));
        let (resting, leaving) = (1, false);
        LiveMachine { machine, run, load, resting, unused_ms, sleeps_in_ms, by, leaving, reasons }
    }

    fn caller(age_ms: u64, resting: bool) -> LiveCaller {
        let dest = SocketAddr::from((Ipv6Addr::LOCALHOST, 5432));
        let (caller, caller_port) = (dest.ip(), 1);
        let cause = Cause { caller, caller_port, source: Source::Host, dest, request: None };
        LiveCaller { cause, what: "connection".to_owned(), age_ms, streams: 0, resting }
    }

    /// When it sleeps by the current proxy, joined with what a retired one says of that run.
    fn check_sleeps(current: Option<u64>, retired: LiveMachine, wanted: (u64, Option<u64>)) {
        let mut live = Live { machines: vec![machine(3, 0, current)], ..Live::default() };
        let other = LiveMachine { machine: "other".to_owned(), ..machine(1, 0, None) };
        let machines = vec![retired, other];
        live.add_retired(Live { machines, ..Live::default() }, 10);
        let [joined, other] = &live.machines[..] else { panic!("{live:?}") };
        assert_eq!((joined.load, joined.sleeps_in_ms), wanted);
        assert_eq!(other.machine, "other");
    }

    #[test]
    fn a_machine_sleeps_when_both_proxies_let_it() {
        check_sleeps(Some(5), machine(3, 0, Some(9)), (0, Some(9)));
        check_sleeps(Some(9), machine(3, 0, Some(5)), (0, Some(9)));
        check_sleeps(Some(5), machine(3, 2, None), (2, None));
        // A floor is the current one's to keep.
        check_sleeps(Some(5), machine(3, 0, None), (0, Some(5)));
        check_sleeps(None, machine(3, 0, Some(5)), (0, None));
        check_sleeps(Some(5), machine(2, 7, None), (0, Some(5)));
    }

    #[test]
    fn callers_of_both_are_listed_as_of_one() {
        let of = |callers, more| Live { callers, more, waiting: 1, ..Live::default() };
        let mut live = of(vec![caller(7, false), caller(3, false), caller(50, true)], 1);
        live.add_retired(of(vec![caller(9, false), caller(5, false), caller(60, true)], 2), 5);
        let ages: Vec<_> = live.callers.iter().map(|it| it.age_ms).collect();
        assert_eq!((&ages[..], live.more, live.waiting), (&[9, 7, 5, 3, 60][..], 4, 2));
    }
}
